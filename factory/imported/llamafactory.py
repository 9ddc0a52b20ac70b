"""A train config of LLaMA-Factory as a command line of Factory: key by key from a table, the few choices in code."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any

from factory import models, templates
from factory.data.record import MEDIA
from factory.line import listed, spelt
from factory.meant import SHORT
from factory.parsed import json_of, yaml_of
from factory.refusal import UserError, nearest, refusal, refuse
from factory.typed import plain
from factory.words import program

_TABLE = Path(__file__).with_suffix(".yaml")
# of finetuning_type=full, in the order that LLaMA-Factory asks
_OPTIMIZED = {"use_galore": "galore", "use_apollo": "apollo", "use_badam": "badam"}
_VARIANTS = {"use_dora": "dora", "pissa_init": "pissa", "use_rslora": "rslora", "loraplus_lr_ratio": "lora_plus"}
# each is lora with one key set, so that they go together; the table has the last one's
_ALSO = {"use_dora": ("dora", True), "pissa_init": ("initialization", "pissa"), "use_rslora": ("rslora", True)}
# called here as there
_TYPES = ("lora", "full", "freeze", "oft")
_LOSSES = ("sigmoid", "hinge", "ipo", "simpo")
# of ours, the key that freezes it there, and whether it does where nothing is said
_PARTS = {
    "language": ("freeze_language_model", False),
    "vision": ("freeze_vision_tower", True),
    "projector": ("freeze_multi_modal_projector", True),
}
_PROJECTOR_ALONE = "train_mm_proj_only"  # of 0.9.0 and 0.9.1
_PRECISIONS = ("pure_bf16", "bf16", "fp16")
_STRATEGIES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
_SHARDED = {"full_shard": "fsdp", "no_shard": "ddp"}
_SHARDED_OTHERWISE = {
    "shard_grad_op": "splits gradients and the optimizer alone; hardware.strategy=zero2 does, by DeepSpeed",
    "hybrid_shard": "splits within a node; hardware.strategy=fsdp splits over all processes",
    "hybrid_shard_zero2": "splits within a node; hardware.strategy=zero2 splits over all processes, by DeepSpeed",
}

_IN_A_KEY = re.compile(r"[\w-]+", re.ASCII)
_NO_ROWS = 1e-6  # a val_size up to this one holds out nothing there
_NEAR = 0.8  # a letter or two of a name are wrong; half-alike names (0.5) may be a newer version's

_UNREAD: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "it is a folder",
    UnicodeDecodeError: "it is not text in UTF-8",
}


@dataclass(slots=True)
class Said:
    """Overrides for Factory; what has no equal, with the reason; what is so unsaid; what to know of what is said."""

    overrides: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any) -> None:
        self.overrides[key] = listed(value) if isinstance(value, list) else spelt(_text(value))

    def as_overrides(self) -> tuple[str, ...]:
        return tuple(f"{key}={value}" for key, value in self.overrides.items())


def as_script(name: str, said: Said, refused: list[str]) -> Iterator[str]:
    """Lines for a shell: the command, and as comments what it does not say and what it would be refused for here."""
    comments = [
        f"{Path(name).name}, as Factory says it",
        *(f"no equal  {key}: {why}" for key, why in said.missing.items()),
        *(f"so anyway {key}: {why}" for key, why in said.same.items()),
        *(f"said as   {key}: {note}" for key, note in said.noted.items()),
        *(f"refused   {line}" for line in refused),
    ]
    # a line's end in a key or a value would end the comment: what follows it, the shell would run
    yield from (f"# {' '.join(text.splitlines())}" for text in comments)
    words = [shlex.quote(text) for text in said.as_overrides()]
    yield " \\\n    ".join([f"{program('factory')} train", *words])


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, bool) or value is None else str(value)


def translate(file: Path) -> Said:
    """Raises UserError where the file is no such config."""
    written = _read(file)
    _refuse_misspelt(written, file)
    # there too a null is a key that is not said, but for the norm, which then cuts nothing
    given = {name: value for name, value in written.items() if value is not None or name == "max_grad_norm"}
    said = Said()
    read = {name for choose in (_stage, _method, _parts) for name in choose(given, said, file)}
    kinds = _kinds(given, said)
    given = _unsaid(given, kinds) | given
    for choose in (_counted, _rollouts, _model, _template, _data, _packing, _precision, _processes, _warmup, _measured):
        read |= set(choose(given, said, file))
    for name, value in given.items():
        if name not in read:
            _one(name, value, said, kinds)
    return said


def _kinds(given: Mapping[str, Any], said: Said) -> set[str]:
    """What the table's `defaults` and `of` call this run: its stage, loss, finetuning_type and method, and the like."""
    kind = _text(given.get("finetuning_type", "lora"))
    others = {"streaming": "streaming", "predict_with_generate": "generation"}
    others |= {"pissa_init": "pissa"} if kind == "lora" else {}
    names = {kind, *(said.overrides.get(key, kind) for key in ("stage", "stage.loss", "method"))}
    return names | {ours for name, ours in others.items() if given.get(name)}


def _unsaid(given: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """LLaMA-Factory's defaults where they are not ours."""
    found = {
        key: value
        for kind, own in _table()["defaults"].items()
        if kind in {"all", *kinds}
        for key, value in own.items()
    }
    if _text(given.get("max_steps", -1)) != "-1":
        found.pop("num_train_epochs")
    return {name: value for name, value in found.items() if name not in given}


def _read(file: Path) -> dict[str, Any]:
    try:
        given = yaml_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        wrong = _UNREAD.get(type(error)) or f"it cannot be read ({why[:200]})"
        raise refuse("import-config", str(file), wrong) from None
    if given is None:
        raise refuse("import-config", str(file), "there is nothing in it")
    if not isinstance(given, dict) or not {"stage", "finetuning_type", "model_name_or_path"} & given.keys():
        raise refuse("import-config", str(file), "it has none of stage, finetuning_type and model_name_or_path")
    return {str(name): value for name, value in given.items()}


def _refuse_misspelt(given: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for the names that are near one that LLaMA-Factory has; it takes no others itself."""
    meant = {name: _meant(name) for name in given if name not in _reasons()}
    wrong = "LLaMA-Factory 0.9 has no such key"
    found = [
        refusal("import-key", f"{name}={plain(given[name])}", wrong, meant=near, file=file)
        for name, near in meant.items()
        if near
    ]
    if found:
        raise UserError(*found)


def _meant(name: str) -> str | None:
    """The key of LLaMA-Factory's that is called so here or in another tool, or that is spelt nearly so."""
    called = {key.rpartition(".")[2]: theirs for theirs, key in reversed(_keys().items())}
    same = called.get(SHORT.get(name.lower(), name).rpartition(".")[2])
    return same or next(iter(nearest(name.lower(), _reasons(), _NEAR)), None)


def _keys() -> dict[str, str]:
    """Ours by theirs, of those that have one."""
    entries = {name: entry if isinstance(entry, str) else entry.get("key") for name, entry in _table()["keys"].items()}
    return {name: key for name, key in entries.items() if key}


@cache
def _table() -> dict[str, Any]:
    return yaml_of(_TABLE.read_text(encoding="utf-8"))


@cache
def _reasons() -> dict[str, str]:
    """Every key of LLaMA-Factory's that is known, and what is said of it where it has no entry of its own."""
    table = _table()
    others = {name: why for why, names in table["others"].items() for name in names}
    return dict.fromkeys((*table["keys"], *table["code"]), "") | others


def _one(name: str, value: Any, said: Said, kinds: set[str]) -> None:
    entry = _table()["keys"].get(name)
    if entry is None:
        said.missing[name] = _reasons().get(name) or "it is not known here; `factory explain` lists the keys"
        return
    entry: dict[str, Any] = {"key": entry} if isinstance(entry, str) else entry
    if "key" not in entry:
        kind = said.same if "same" in entry else said.missing
        kind[name] = entry.get("same") or entry["none"]
        return
    key = entry["key"]
    if "of" in entry and not kinds & set(entry["of"]):
        key = entry.get("else")
    if entry.get("list"):
        names = _names(value)
        value = names if names != ["all"] else "all"
    values = entry.get("values")
    known = {_text(each): ours for each, ours in (values or {}).items()}
    if key is None:
        unread = f"neither stage={said.overrides['stage']} nor method={said.overrides['method']} reads it there"
        said.missing[name] = entry.get("none", unread)
    elif values is None or (entry.get("others") and _text(value) not in known):
        said.set(key, value)
    elif _text(value) in known:
        if key not in said.overrides or _text(known[_text(value)]) != "auto":
            said.set(key, known[_text(value)])
    else:
        said.missing[name] = f"{_text(value)} is none of {', '.join(known)}"


# --- what takes more than one key to tell: each says which keys it has read


def _stage(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    stage, loss = _text(given.get("stage", "sft")), _text(given.get("pref_loss", "sigmoid"))
    said.set("stage", "orpo" if (stage, loss) == ("dpo", "orpo") else stage)
    if said.overrides["stage"] == "dpo" and loss in _LOSSES:
        said.set("stage.loss", loss)
    elif said.overrides["stage"] == "dpo":
        said.missing["pref_loss"] = f"{loss} is none of {', '.join((*_LOSSES, 'orpo'))}"
    yield from ("stage", "pref_loss")


def _method(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    kind, bits = _text(given.get("finetuning_type", "lora")), given.get("quantization_bit")
    if kind not in _TYPES:
        raise refuse("import-config", str(file), f"finetuning_type={kind} is none of {', '.join(_TYPES)}")
    method = kind
    if method == "full":
        method = next((ours for name, ours in _OPTIMIZED.items() if given.get(name)), "full")
        if method == "badam" and _text(given.get("badam_mode", "layer")) == "ratio":
            method = "badam_ratio"
    elif left_out := [name for name in _OPTIMIZED if given.get(name)]:
        said.missing |= dict.fromkeys(left_out, f"it is of finetuning_type=full here, not of {kind}")
    first, *others = [name for name in _VARIANTS if given.get(name) and method == "lora"] or [None]
    method = _VARIANTS[first] if first else method
    for key, value in (_ALSO[name] for name in others if name in _ALSO):
        said.set(f"method.{key}", value)
    if bits == 4 and method == "lora":
        method = "qlora"
    elif bits is not None:
        said.set("method.quantization.bits", bits)
    if given.get("quantization_method") not in (None, "bnb", "bitsandbytes"):
        said.set("method.quantization.method", given["quantization_method"])
    said.set("method", method)
    target = _text(given.get("lora_target", "all"))
    if kind == "lora":
        rank = given.get("lora_rank", 8)
        said.set("method.rank", rank)
        said.set("method.alpha", given.get("lora_alpha", 2 * rank if isinstance(rank, int) else rank))
    if kind in ("lora", "oft") and target != "all":
        said.set("method.target_modules", _names(given["lora_target"]))
    yield from ("finetuning_type", "quantization_bit", "quantization_method", *_OPTIMIZED, "badam_mode", "lora_target")
    yield from (name for name in _VARIANTS if name != "loraplus_lr_ratio")
    if kind == "lora":
        yield from ("lora_rank", "lora_alpha")


def _parts(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """Which parts of a model that sees or hears train: where nothing is said, the language model, here as there."""
    asked = [key for key in (*(key for key, _ in _PARTS.values()), _PROJECTOR_ALONE) if key in given]
    if not asked:
        return
    frozen = {part: bool(given.get(key, unsaid)) for part, (key, unsaid) in _PARTS.items()}
    if given.get(_PROJECTOR_ALONE):
        frozen |= {"language": True, "projector": False}
    kind, parts = _text(given.get("finetuning_type", "lora")), [part for part in _PARTS if not frozen[part]]
    if kind in ("lora", "oft") and "projector" in parts:
        parts.remove("projector")
        said.noted[_PARTS["projector"][0]] = "no adapter stands beside a projector there; method.parts may name it here"
    if parts == ["language"]:
        said.same |= dict.fromkeys((key for key in asked if key not in said.noted), "the language model alone trains")
    elif not parts or kind == "freeze":
        why = "layers of these numbers train in the tower there; see method.parts" if parts else "nothing would train"
        said.missing |= dict.fromkeys(asked, why)
    else:
        said.set("method.parts", parts)
        if "vision" in parts:
            said.noted[_PARTS["vision"][0]] = "of a model that hears, method.parts names audio in the place of vision"
    yield from asked


def _counted(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """Numbers that mean another thing there."""
    layers, scale = given.get("freeze_trainable_layers"), given.get("apollo_scale")
    if said.overrides["method"] == "freeze" and isinstance(layers, int) and layers < 0:
        said.set("method.position", "first")
        said.set("method.num_layers", -layers)
        yield "freeze_trainable_layers"
    if said.overrides["method"] == "apollo" and isinstance(scale, int | float) and scale > 0:
        said.set("method.scale", round(sqrt(scale), 6))
        said.noted["apollo_scale"] = "method.scale is its square root, by which apollo_torch multiplies"
        yield "apollo_scale"


def _rollouts(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if said.overrides["stage"] != "ppo":
        return
    sizes = [given[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "ppo_buffer_size")]
    if all(isinstance(size, int) for size in sizes):
        said.set("stage.rollout_batch_size", prod(sizes))
        yield "ppo_buffer_size"
    said.set("stage.kl_coefficient", 0.2)  # TRL 0.9's, which LLaMA-Factory has no key for


def _model(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    adapters = _names(given.get("adapter_name_or_path"))
    yield "adapter_name_or_path"
    if len(adapters) > 1:
        said.missing["adapter_name_or_path"] = "one adapter is gone on from; `factory export` merges the others before"
    elif adapters:
        said.set("model.adapter", adapters[0])
        refers = said.overrides["stage"] in ("kto", "ppo") or said.overrides.get("stage.loss", "simpo") != "simpo"
        if refers and not given.get("create_new_adapter"):
            said.noted["adapter_name_or_path"] = "the reference is the model with this adapter; there it is without"
    path = given.get("model_name_or_path")
    if path is None:
        said.missing["model_name_or_path"] = "the file names no model; add model=NAME or model.path=FOLDER"
        return
    option = models.option_of(path)
    said.set("model" if option else "model.path", option or path)
    yield "model_name_or_path"


def _template(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    name = given.get("template")
    ours = "auto" if name is None else _table()["templates"].get(_text(name), _text(name))
    if ours == "auto" or ours in templates.names():
        said.set("model.template", ours)
        if otherwise := _table()["written_otherwise"].get(ours):
            said.noted["template"] = f"written here as its source does; LLaMA-Factory writes {otherwise}"
    else:
        said.missing["template"] = (
            f"there is no {ours} here, so the model's own is kept; to write it so, model.template={ours}.yaml, "
            "a file of your own (docs/contributing.md)"
        )
    yield "template"


def _data(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    folder = Path(_text(given.get("dataset_dir", "data")))
    names, held = (list(filter(None, _names(given.get(key)))) for key in ("dataset", "eval_dataset"))
    # a set that is held out whole does not train
    apart = [name for name in held if name not in names][:1]
    said.set("data", "llamafactory")
    said.set("data.path", folder / "dataset_info.json")
    if names:
        said.set("data.names", [*names, *apart])
    else:  # so that the command is refused, and does not train on the demonstration's rows
        said.missing["dataset"] = "the file names no data set; add data.names=[NAME], or in the place of data another"
    if apart:
        said.set("data.validation", apart[0])
    else:
        _held_out(0 if held else given.get("val_size", 0), said)
    if held != apart:
        said.missing["eval_dataset"] = "one set is held out whole (data.validation), which does not train"
    if said.overrides["stage"] != "pt":
        said.set("data.truncation", "keep_response")
        said.noted["cutoff_len"] = (
            "data.truncation=keep_response drops a row without room for its answer, there it is cut"
        )
    elif given.get("packing") is False:
        said.set("data.truncation", "right")
    _weights(given, names, said)
    entries = _entries(folder / "dataset_info.json", [*names, *apart])
    _first(given, [*names, *apart], _num_samples(entries), said)
    _media(given, entries, said)
    yield from ("dataset", "dataset_dir", "eval_dataset", "val_size", "interleave_probs", "max_samples")
    yield from ("media_dir", "image_dir")


def _media(given: Mapping[str, Any], entries: dict[str, dict[str, Any]], said: Said) -> None:
    """Where paths of images, videos and sounds start: at the catalogue, where nothing is said, here as there."""
    files = {name: entry for name, entry in entries.items() if entry.get("file_name") and not entry.get("hf_hub_url")}
    shown = {name: _columns(entry) & set(MEDIA) for name, entry in files.items()}
    names = [name for name, columns in shown.items() if columns]
    folder = next((key for key in ("media_dir", "image_dir") if given.get(key) is not None), None)
    if folder and names and all(map(_IN_A_KEY.fullmatch, names)):
        for name in names:
            said.set(f"data.sources.{name}.folder", given[folder])
    elif folder:
        why = "a name of these sets is no part of a key" if names else "none of these sets is a file that names media"
        said.missing[folder] = f"{why} (data.sources.NAME.folder)"
    if any("images" in _columns(entry) for entry in entries.values()) and "image_max_pixels" not in given:
        said.noted["image_max_pixels"] = (
            "images keep the sizes of the model's own processor; there those of more than 768 x 768 pixels lose some"
        )


def _columns(entry: dict[str, Any]) -> set[str]:
    columns = entry.get("columns")
    return set(columns) if isinstance(columns, dict) else set()


def _held_out(size: Any, said: Said) -> None:
    """val_size is a share, or from 1 on a number of rows: 1 itself where it is written without a point."""
    if not isinstance(size, int | float) or isinstance(size, bool):
        said.missing["val_size"] = f"{_text(size)} is neither a share nor a number of rows"
    elif size <= _NO_ROWS:
        said.set("data.validation_fraction", 0)
    elif size < 1:
        said.set("data.validation_fraction", size)
        said.noted["val_size"] = "data.validation_fraction holds out 200 rows at most"
    else:
        said.missing["val_size"] = (
            f"{size} rows there; here it is a share, and its default where none is said, of 200 rows at most: set "
            f"data.validation_fraction to {size} divided by the number of rows"
        )


def _entries(file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Of the catalogue, those that are named; what is wrong with it is told when it is planned."""
    try:
        entries = json_of(file.read_text(encoding="utf-8-sig"))
        found = {name: entries[name] for name in names if name in entries}
    except (OSError, ValueError, TypeError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def _num_samples(entries: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Of the sets that say how many rows they give."""
    given = {name: entry.get("num_samples") for name, entry in entries.items()}
    return {name: count for name, count in given.items() if isinstance(count, int)}


def _first(given: Mapping[str, Any], names: list[str], counts: dict[str, int], said: Said) -> None:
    """max_samples is of each set, after the set's own num_samples."""
    if counts:
        said.noted["num_samples"] = (
            f"{', '.join(counts)}: at most so many rows; there a set of fewer gives some again until there are as many "
            "(data.sources.NAME.weight says how often rows train), and data that streams is read to its end"
        )
    most = given.get("max_samples")
    if most is None:
        return
    if all(map(_IN_A_KEY.fullmatch, names)):
        for name in names:
            own = counts.get(name)
            said.set(f"data.sources.{name}.max_samples", min(most, own) if own and isinstance(most, int) else most)
        said.noted["max_samples"] = "rows are drawn by seed; there the first ones are taken"
    else:
        said.missing["max_samples"] = "a name of these sets is no part of a key (data.sources.NAME.max_samples)"


def _weights(given: Mapping[str, Any], names: list[str], said: Said) -> None:
    shares, mixing = _names(given.get("interleave_probs")), _text(given.get("mix_strategy", "concat"))
    if shares and not mixing.startswith("interleave"):
        said.missing["interleave_probs"] = f"mix_strategy={mixing} draws nothing"
    elif len(shares) == len(names) and all(map(_IN_A_KEY.fullmatch, names)):
        for name, share in zip(names, shares, strict=True):
            said.set(f"data.sources.{name}.weight", share)
    elif len(shares) == len(names):
        said.missing["interleave_probs"] = "a name of these sets is no part of a key (data.sources.NAME.weight)"
    elif shares:
        said.missing["interleave_probs"] = f"{len(shares)} shares are not one for each of {len(names)} sets"


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    parts = value if isinstance(value, list) else _text(value).split(",")
    return [_text(part).strip() for part in parts]


def _packing(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    stage, apart = said.overrides["stage"], bool(given.get("neat_packing"))
    packed = apart or given.get("packing")
    if stage not in ("pt", "sft"):
        if packed:
            said.same["packing"] = f"stage={stage} packs nothing, here as there"
    elif packed is not None:
        said.set("data.packing", packed)
        if apart:
            said.set("data.isolate_documents", True)
        elif packed and stage == "sft":
            said.noted["packing"] = "documents do not see each other, unless data.isolate_documents=false, as there"
    yield from ("packing", "neat_packing")


def _precision(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    name = next((name for name in _PRECISIONS if given.get(name)), None)
    said.set("precision", name or "auto")
    if name is None:
        said.noted["bf16"] = (
            "precision=auto is as the machine computes fast; there without bf16 or fp16 in the type "
            "that weights are stored in, those that train in float32 (precision=fp32)"
        )
    yield from _PRECISIONS


def _processes(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if asked := given.get("deepspeed"):
        level, offload = _zero(asked)
        if level is None:
            said.missing["deepspeed"] = "it tells no stage of ZeRO; set hardware.strategy=zero1, zero2 or zero3"
        else:
            _share(said, "deepspeed", _STRATEGIES[level], offload=offload)
    words = _sharding(given.get("fsdp"))
    strategy = next((_SHARDED[word] for word in words if word in _SHARDED), None)
    if strategy:
        _share(said, "fsdp", strategy, offload="offload" in words)
    elif words:
        why = next((_SHARDED_OTHERWISE[word] for word in words if word in _SHARDED_OTHERWISE), None)
        said.missing["fsdp"] = why or f"{' '.join(words)} does not say what is split; hardware.strategy=fsdp splits all"
    yield from ("deepspeed", "fsdp")


def _zero(asked: Any) -> tuple[int | None, bool]:
    """The stage that a config of DeepSpeed says, or its file's name, and whether what is split moves to the CPU."""
    if isinstance(asked, dict):
        zero = asked.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        stage = zero.get("stage")
        moved = [zero.get(name) for name in ("offload_optimizer", "offload_param")]
        offload = any(isinstance(each, dict) and each.get("device") == "cpu" for each in moved)
        return (stage if isinstance(stage, int) and stage in _STRATEGIES else None), offload
    name = Path(_text(asked)).stem
    return next(
        (level for level in _STRATEGIES if f"z{level}" in name or f"zero{level}" in name), None
    ), "offload" in name


def _share(said: Said, name: str, strategy: str, *, offload: bool) -> None:
    said.set("hardware.strategy", strategy)
    if offload:
        said.set("hardware.offload", True)
    moved = " and hardware.offload=true" if offload else ""
    said.noted[name] = f"hardware.strategy={strategy}{moved}; set hardware.num_processes beside it"


def _sharding(asked: Any) -> list[str]:
    """The words of transformers' `fsdp`: a text, a list of them, or a truth value in later versions."""
    if asked is True:
        return ["full_shard"]
    return " ".join(_names(asked or None)).lower().split()


def _warmup(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    steps, total = given.get("warmup_steps", 0), given.get("max_steps")
    if _text(given["lr_scheduler_type"]) == "constant":
        said.set("stage.warmup_ratio", 0)
        if steps or given["warmup_ratio"]:
            said.noted["lr_scheduler_type"] = "constant has no warm-up there, whatever is set of one"
    elif isinstance(steps, float) and 0 < steps < 1:
        said.set("stage.warmup_ratio", steps)  # as transformers 5 reads it
    elif isinstance(steps, int) and isinstance(total, int) and 0 < steps <= total:
        said.set("stage.warmup_ratio", round((steps - 0.5) / total, 8))  # a share is rounded up to whole steps
    else:
        yield from ("warmup_steps",) if steps == 0 else ()
        return
    yield from ("warmup_steps", "warmup_ratio")


def _measured(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """When checkpoints are kept and held-out rows are measured."""
    saves = _strategy(given.get("save_strategy", "steps"))
    if saves == "no":
        said.set("stage.save_steps", None)
        yield from ("save_strategy", "save_steps")
    elif saves == "steps":
        yield "save_strategy"
    if saves != "no" and "save_total_limit" not in given:
        said.noted["save_total_limit"] = "of checkpoints, stage.save_total_limit are kept; there all are"
    name = "eval_strategy" if "eval_strategy" in given else "evaluation_strategy"
    measures = _strategy(given.get(name, "no"))
    if measures == "steps":
        said.set("stage.eval_steps", given.get("eval_steps") or given["logging_steps"])
    elif measures != "no":
        said.missing[name] = f"{measures} is no number of steps; set stage.eval_steps"
    elif "eval_steps" in given:
        said.same["eval_steps"] = "without eval_strategy=steps nothing is measured while training, here as there"
    if given.get("predict_with_generate"):
        said.noted["predict_with_generate"] = "answers are the likeliest (evaluate.temperature=0); there they are drawn"
    yield from ("eval_strategy", "evaluation_strategy", "eval_steps")


def _strategy(value: Any) -> str:
    """`no` is a truth value in YAML."""
    return "no" if value is False else _text(value)
