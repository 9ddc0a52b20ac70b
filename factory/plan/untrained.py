"""Trees for the verbs that train nothing: the user's overrides over the settings of the run that `run=` names."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from factory.config import compose
from factory.config.line import group_of, listed, name_of, run_of, spelt
from factory.config.refusal import refuse
from factory.config.values import to_tree, whole
from factory.plan.saved import BEFORE, Saved, saved, scores
from factory.run.folder import is_mlflow_id

_export_key = partial(
    refuse,
    "export-key",
    because=("an export reads the model, the method's quantization and its own keys; nothing is trained or measured"),
    fix="leave it out",
)
Taken = tuple[dict[str, dict[str, Any]], tuple[str, ...]]  # of a run: whole groups of its settings, and overrides
_EVALUATED = ("model", "stage", "precision", "compute", "hardware", "evaluate")
_ONE_PROCESS: dict[str, Any] = {"num_processes": 1, "num_nodes": 1, "strategy": "none", "offload": False}


def evaluated(found: Saved) -> Taken:
    """Return what an evaluation takes of a run: all of its settings but the method and the tracking."""
    if found.plan is None:
        return {}, ()
    settings = found.plan.settings
    groups = {name: to_tree(getattr(settings, name)) for name in _EVALUATED}
    groups["stage"]["resume"] = None
    return {**groups, "data": _data(found)}, (f"seed={settings.seed}", f"checks={settings.checks}")


def answering(found: Saved) -> Taken:
    """Return what chat and serve take of a run: its model, in one process. Its data need not be there any more.

    A model with a head for scores is served as a reward model, whichever stage trained it.
    """
    stage = ("stage=rm",) if scores(found.adapter, found.path) else ()
    if found.plan is None:
        return {}, stage
    settings = found.plan.settings
    groups = {name: to_tree(getattr(settings, name)) for name in ("model", "precision", "hardware")}
    groups["hardware"] |= _ONE_PROCESS
    return groups, (f"data.reasoning={settings.data.reasoning}", f"data.tools={settings.data.tools}", *stage)


def _exported(found: Saved) -> Taken:
    """Return the model; the seed is of rows of the embedding that nobody trained."""
    if found.plan is None:
        return {}, ()
    return {"model": to_tree(found.plan.settings.model)}, (f"seed={found.plan.settings.seed}",)


def untrained(
    line: compose.CommandLine,
    taken: Callable[[Saved], Taken] = evaluated,
    *,
    base: bool = False,
    more: tuple[str, ...] = (),
) -> compose.Composed:
    """Return the tree of the overrides, over what is `taken` of the run that they name.

    `base`: the model that the run started from, instead of its own. `more`: overrides beside the user's. Raises
    UserError.
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
        return compose.compose(replace(line, overrides=(*own, *more, "method=none")))
    run = run_of(named[-1])
    found = saved(run, _tracking_uri(line, own) if is_mlflow_id(run) else None)
    if base and found.run is None and found.adapter is None:
        raise refuse(
            "chat-compare",
            named[-1],
            "of a saved model without its run nobody knows what it started from",
            because="two models answer side by side",
            fix="name two, as compare=[base,run] with run=FOLDER, or compare=[outputs/one,outputs/other]",
        )
    (groups, texts), given = taken(found), set(map(name_of, own))
    place = _place(found, base=base)
    if {"model", "model.path"} & given:  # another base for the adapter
        place = {name: value for name, value in place.items() if name in ("adapter", *found.positions)}
    if "model" in groups and "model" not in given:
        groups["model"] |= place
    else:
        texts += tuple(f"model.{name}={_spelt(value)}" for name, value in place.items() if value is not None)
    if found.quantization is not None and not any(name.startswith("method.") for name in given):
        quantization = to_tree(found.quantization)
        texts += tuple(f"method.quantization.{name}={_spelt(value)}" for name, value in quantization.items())
    made = compose.compose(replace(line, overrides=(*texts, *own, *more, "method=none"), planned=groups))
    options = found.plan.options if found.plan else {}
    chosen = {name: options[name] for name in groups if name not in given and name in options}
    return replace(made, options={**made.options, **chosen}, overrides=line.overrides, run=found.run)


def _tracking_uri(line: compose.CommandLine, own: tuple[str, ...]) -> str | None:
    texts = tuple(text for text in own if group_of(text) == "tracking")
    tracking = compose.compose(replace(line, overrides=texts)).tree["tracking"]
    return tracking.get("uri") if tracking.get("tool") == "mlflow" else None


def _spelt(value: Any) -> str:
    return listed(value) if isinstance(value, list) else spelt(value) if isinstance(value, str) else whole(value)


def _place(found: Saved, *, base: bool) -> dict[str, Any]:
    """Return the keys of `model` for what was saved, or for the run's base."""
    stretched = found.positions
    place: dict[str, Any] = BEFORE if found.run and found.path is not None else {}
    keys = {"path": found.path or found.base, "adapter": found.adapter}
    if base:
        place, keys = {}, {"path": found.base}
        stretched = {name: value for name, value in stretched.items() if name != "context_length"}
    keys |= {"template": found.template, "revision": found.revision}
    return {**place, **{name: value for name, value in keys.items() if value is not None}, **stretched}


def _data(found: Saved) -> dict[str, Any]:
    """Return the run's data with whole paths, as its own are relative to where it was started."""
    assert found.plan is not None
    data = to_tree(found.plan.settings.data)
    path, sources = None, dict[str, dict[str, Any]]()
    for name, keys in data["sources"].items():
        place = _whole(keys["path"], found.plan.sources[name].path)
        follows = keys["path"] is not None and keys["path"] == data["path"]  # as data=file does
        path = place if follows else path
        sources[name] = {**keys, "path": "${data.path}" if follows else place}
    return {**data, "sources": sources, "names": [], "path": path}


def _whole(path: str | None, read: str) -> str | None:
    relative = path is not None and not path.startswith(("package:", "~")) and not Path(path).is_absolute()
    return read if relative and Path(read).is_absolute() else path


_EXPORTING = ("run", "model", "export", "hardware", "tracking", "hydra", "seed")  # groups that an export reads
NOT_ONE_PROCESS = (*(f"hardware.{name}" for name in _ONE_PROCESS), "hardware.rank_timeout")


def exported(line: compose.CommandLine) -> compose.Composed:
    """Return the tree of an export: the named model, in float32 and without data. Raises UserError."""
    for text in line.overrides:
        group = group_of(text)
        if group not in _EXPORTING and not name_of(text).startswith("method.quantization."):
            raise _export_key(text, "an export does not read it")
        if name_of(text) in NOT_ONE_PROCESS:
            raise _export_key(text, "one process writes an export")
        if name_of(text) == "model.rope_scaling":
            raise _export_key(text, "a run stretches positions, to its data.max_length, and its model has them so")
    line = replace(line, verb="export")
    made = untrained(line, _exported, more=("precision=fp32",))
    model = made.tree["model"]
    if scores(model["adapter"], model["path"]):
        made = untrained(line, _exported, more=("precision=fp32", "stage=rm"))
    hardware = made.tree["hardware"]
    if hardware["num_processes"] not in (1, "1") or hardware["strategy"] != "none":
        text = f"hardware={made.options['hardware']}"
        raise _export_key(text, "it is of several processes, and one writes an export")
    tree = {
        **made.tree,
        "model": {**model, "rope_scaling": "none"},  # the saved config has them
        "data": {**made.tree["data"], "sources": {}},
        "evaluate": {**made.tree["evaluate"], "perplexity": False, "samples": 0},
        "export": {**made.tree["export"], "run": made.run},
    }
    return replace(made, tree=tree, options={name: text for name, text in made.options.items() if name != "data"})
