"""Trees for the verbs that train nothing: what the user says over what the run that is named was made with."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from factory.config import compose
from factory.config.line import group_of, name_of, run_of
from factory.config.refusal import refuse
from factory.config.values import to_tree
from factory.inference.asked import NOT_TAKEN
from factory.plan.saved import BEFORE, Saved, merged, saved, scores

_export_key = partial(
    refuse,
    "export-key",
    because=("an export reads the model, the method's quantization and its own keys; nothing is trained or measured"),
    fix="leave it out",
)


def untrained(
    line: compose.CommandLine,
    taken: Callable[[Saved], tuple[str, ...]] = lambda found: found.overrides,
    *,
    base: bool = False,
) -> compose.Composed:
    """What the user says, over what the run that is named was made with; its method's own keys are of no use.

    `taken`: what of the run, by its overrides, counts. `base`: the model that the run started from, instead of its own.
    """
    named = [text for text in line.overrides if name_of(text) == "run"]
    own = tuple(text for text in line.overrides if name_of(text) != "run")
    if method := next((text for text in own if name_of(text) == "method"), None):
        raise refuse(
            "evaluate-method",
            method,
            "no method is read",
            because="evaluation trains nothing",
            fix="leave it out; method.quantization.* holds the weights in fewer bits",
        )
    if not named:
        return compose.compose(replace(line, overrides=(*own, "method=none")))
    bare = compose.compose(replace(line, overrides=(*filter(_of_method, own), "method=none")))
    found = _saved(named[-1], bare.tree["tracking"])
    if base and found.run is None and found.adapter is None:
        raise refuse(
            "chat-compare",
            named[-1],
            "of a saved model without its run nobody knows what it started from",
            because="two models answer side by side",
            fix="name two, as compare=[base,run] with run=FOLDER, or compare=[outputs/one,outputs/other]",
        )
    line = replace(line, config_dirs=tuple(dict.fromkeys((*line.config_dirs, *found.config_dirs))))
    made = model = _with_what_is_read(line, merged(taken(found), own), own)
    if any(name_of(text) == "recipe" for text in found.overrides):  # which may name the model, and is not all `taken`
        model = compose.compose(replace(line, overrides=merged(_of_model(found), own)))
    at_home = _at_home({**made.tree, "model": model.tree["model"]}, found, own)
    tree = {
        **made.tree,
        "data": at_home["data"],
        "method": _method(bare.tree["method"], found, own),
        "model": {**at_home["model"], **_places(found, own, base=base)},
    }
    options = {**made.options, "model": model.options["model"], "method": "none"}
    named_by_it = (base or found.adapter is not None) and not {"model", "model.path"} & set(map(name_of, own))
    problems = dict.fromkeys((*made.problems, *(model.problems if named_by_it else ())))
    return replace(made, tree=tree, options=options, problems=tuple(problems), run=found.run)


def _saved(named: str, tracking: dict[str, Any]) -> Saved:
    return saved(run_of(named), tracking.get("uri") if tracking.get("tool") == "mlflow" else None)


def _method(method: dict[str, Any], found: Saved, own: tuple[str, ...]) -> dict[str, Any]:
    """None, over a base that is held as the run held it, unless the user says how."""
    said = found.quantization is None or any(map(_of_method, own))
    return method if said else {**method, "quantization": to_tree(found.quantization)}


def _places(found: Saved, own: tuple[str, ...], *, base: bool) -> dict[str, Any]:
    """Keys of `model` that are what was saved, or of the run's base what it needs."""
    places = {name: value for name, value in (("path", found.path), ("adapter", found.adapter)) if value is not None}
    if base:
        places = {} if found.run else {"path": found.path}
    said = {name_of(text) for text in own}
    if found.run and not base and found.path is not None and not {"model", "model.path"} & said:
        places |= {name: value for name, value in BEFORE.items() if f"model.{name}" not in said}
    if found.template is not None and not {"model", "model.template"} & said:
        places["template"] = found.template
    if found.revision is not None and not {"model", "model.path", "model.revision"} & said:
        places["revision"] = found.revision
    positions = {
        name: value
        for name, value in found.positions.items()
        if f"model.{name}" not in said and not (base and name == "context_length")  # it reaches as far as it did
    }
    return places | positions


# keys of `evaluate` and those beside them, one of which has to be set for them to be read
_READ_WITH = {
    "stride": ("perplexity",),
    "metrics": ("generation",),
    "temperature": ("generation",),
    "path": ("benchmarks",),
    "shots": ("benchmarks",),
    "harness_path": ("harness",),
    "harness_shots": ("harness",),
    "chat": ("benchmarks", "harness"),
    "max_samples": ("benchmarks", "harness", "generation"),
}


def _with_what_is_read(line: compose.CommandLine, overrides: tuple[str, ...], own: tuple[str, ...]) -> compose.Composed:
    """Without what the run alone said of what the user turns off: nobody could take it back."""
    made = compose.compose(replace(line, overrides=overrides))
    evaluate = made.tree["evaluate"]
    unread = {f"evaluate.{name}" for name, others in _READ_WITH.items() if not any(evaluate[each] for each in others)}
    unread -= {name_of(text) for text in own}
    read = tuple(text for text in overrides if name_of(text) not in unread)
    return made if read == overrides else compose.compose(replace(line, overrides=read))


def _at_home(tree: dict[str, Any], found: Saved, own: tuple[str, ...]) -> dict[str, Any]:
    """`data` and `model` with the run's own files, wherever the command is given; without those that the user names."""
    data, model, said = tree["data"], tree["model"], {name_of(text) for text in own}
    if not said & {"model", "model.path"}:
        model = {**model, "path": _whole(model["path"], found.base)}
    if not any(name in ("data", "data.path") or name.startswith("data.sources.") for name in said):
        data = _catalogued(data, found) if _away(data) else _of_files(data, found)
    return {"data": data, "model": model}


def _of_files(data: dict[str, Any], found: Saved) -> dict[str, Any]:
    files = {name: source.path for name, source in found.sources.items() if source.origin == "file"}
    paths = {name: _whole(keys["path"], files.get(name)) for name, keys in data["sources"].items()}
    sources = {name: {**keys, "path": paths[name]} for name, keys in data["sources"].items()}
    read = (paths[name] for name, keys in data["sources"].items() if keys["path"] == data["path"])
    return {**data, "sources": sources, "path": next(read, data["path"])}


def _away(data: dict[str, Any]) -> bool:
    """Whether its sets are those of a catalogue that is not to be found from here."""
    paths = [keys["path"] for keys in data["sources"].values() if keys.get("origin") == "catalogue"]
    return any(isinstance(path, str) and not Path(path).exists() for path in paths)


def _catalogued(data: dict[str, Any], found: Saved) -> dict[str, Any]:
    """The sets that the run found in it, each by itself."""
    sources = to_tree(dict(found.sources))
    return {**data, "sources": sources, "names": [], "path": None}


def _whole(path: Any, known: str | None) -> Any:
    """The file that the run read, where that is known: gone, it is named as what is gone, and not as a hub's id."""
    relative = isinstance(path, str) and not path.startswith(("package:", "~")) and not Path(path).is_absolute()
    own = relative and known is not None and (Path(known).exists() or not Path(path).exists())
    return known if own else path


_EXPORTING = ("run", "model", "export", "hardware", "tracking", "hydra", "seed")  # groups that an export reads


def exported(line: compose.CommandLine) -> compose.Composed:
    """The model of what is named, in float32 and without data; all else as it is by default or as the user says."""
    for text in line.overrides:
        group = group_of(text)
        if group not in _EXPORTING and not name_of(text).startswith("method.quantization."):
            raise _export_key(text, "an export does not read it")
        if name_of(text) in NOT_TAKEN:
            raise _export_key(text, "one process writes an export")
        if name_of(text) == "model.rope_scaling":
            raise _export_key(text, "a run stretches positions, to its data.max_length, and its model has them so")
    composed = untrained(line, _of_model)
    place = composed.tree["model"]
    heads = "rm" if scores(place["adapter"], place["path"]) else "sft"
    own = tuple(text for text in line.overrides if group_of(text) not in ("run", "model"))
    bare = compose.compose(replace(line, overrides=(*own, "method=none", f"stage={heads}", "precision=fp32")))
    if several := _several(bare):
        raise _export_key(several, "it is of several processes, and one writes an export")
    tree = {
        **bare.tree,
        "model": {**place, "rope_scaling": "none"},  # the saved config has them
        "method": composed.tree["method"],
        "seed": composed.tree["seed"],  # of rows of the embedding that nobody trained
        "data": {**bare.tree["data"], "sources": {}},
        "evaluate": {**bare.tree["evaluate"], "perplexity": False, "samples": 0},
        "export": {**bare.tree["export"], "run": composed.run},
    }
    options = {**bare.options, "model": composed.options["model"]}
    del options["data"]
    return replace(composed, tree=tree, options=options, overrides=line.overrides)


def _several(bare: compose.Composed) -> str | None:
    """The option of the hardware whose file says so, which is no key of the command line."""
    asked = bare.tree["hardware"]
    several = asked.get("num_processes") not in (1, "1") or asked.get("strategy") != "none"
    return f"hardware={bare.options['hardware']}" if several else None


def _of_model(found: Saved) -> tuple[str, ...]:
    """What a run's overrides say of its model: the options of its data and of its stage need not be there any more."""
    return tuple(text for text in found.overrides if group_of(text) in ("model", "seed", "recipe"))


def _of_method(text: str) -> bool:
    return name_of(text).startswith(("method.", "tracking."))
