"""What takes more than one key to tell, of what is trained: the stage, the method, the model and its template."""

from collections.abc import Iterator, Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

from factory import models, templates
from factory.imported.llamafactory.table import table
from factory.imported.said import Said, names_of, text_of
from factory.refusal import refuse

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


def _stage(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    stage, loss = text_of(given.get("stage", "sft")), text_of(given.get("pref_loss", "sigmoid"))
    said.set("stage", "orpo" if (stage, loss) == ("dpo", "orpo") else stage)
    if said.overrides["stage"] == "dpo" and loss in _LOSSES:
        said.set("stage.loss", loss)
    elif said.overrides["stage"] == "dpo":
        said.missing["pref_loss"] = f"{loss} is none of {', '.join((*_LOSSES, 'orpo'))}"
    yield from ("stage", "pref_loss")


def _method(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    kind, bits = text_of(given.get("finetuning_type", "lora")), given.get("quantization_bit")
    if kind not in _TYPES:
        raise refuse("import-config", str(file), f"finetuning_type={kind} is none of {', '.join(_TYPES)}")
    method = kind
    if method == "full":
        method = next((ours for name, ours in _OPTIMIZED.items() if given.get(name)), "full")
        if method == "badam" and text_of(given.get("badam_mode", "layer")) == "ratio":
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
    target = text_of(given.get("lora_target", "all"))
    if kind == "lora":
        rank = given.get("lora_rank", 8)
        said.set("method.rank", rank)
        said.set("method.alpha", given.get("lora_alpha", 2 * rank if isinstance(rank, int) else rank))
    if kind in ("lora", "oft") and target != "all":
        said.set("method.target_modules", names_of(given["lora_target"]))
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
    kind, parts = text_of(given.get("finetuning_type", "lora")), [part for part in _PARTS if not frozen[part]]
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
    adapters = names_of(given.get("adapter_name_or_path"))
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
    ours = "auto" if name is None else table()["templates"].get(text_of(name), text_of(name))
    if ours == "auto" or ours in templates.names():
        said.set("model.template", ours)
        if otherwise := table()["written_otherwise"].get(ours):
            said.noted["template"] = f"written here as its source does; LLaMA-Factory writes {otherwise}"
    else:
        said.missing["template"] = (
            f"there is no {ours} here, so the model's own is kept; to write it so, model.template={ours}.yaml, "
            "a file of your own (docs/contributing.md)"
        )
    yield "template"


KINDS = _stage, _method, _parts
REST = _counted, _rollouts, _model, _template
