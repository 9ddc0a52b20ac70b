"""What takes more than one key to tell, of what is trained: the stage, the method, the model and its template."""

from collections.abc import Iterator, Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

from factory import templates
from factory.config import tables
from factory.config.refusal import refuse
from factory.verbs.import_config.said import Said, names_of, text_of
from factory.verbs.import_config.table import table

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
_UNEXPANDED = (
    "name the model that they were added to, as the hub does, as model_name_or_path; or, where this one is without "
    "them, take use_llama_pro out of the file, and in the command put method=llama_pro method.num_new_layers={count} "
    "in the place of its words of method"
)
_MERGED = (
    "merge it before: `factory export run=ADAPTER export.dir=FOLDER`, one after the other where there are several, and "
    "name FOLDER as model_name_or_path"
)
_SYSTEM = (
    "take the line out of the file, and say model.template=own.yaml in the command: a file of the lines source, "
    "like (the template that is meant) and default_system (docs/contributing.md, A template)"
)
_SERVED = (
    "take reward_model_type and reward_model out of the file, and say stage.reward=URL in the command: that server is "
    "asked otherwise (docs/reinforcement.md)"
)
_PROJECTOR_ALONE = "train_mm_proj_only"  # of 0.9.0 and 0.9.1


def stage_of(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    stage, loss = text_of(given.get("stage", "sft")), text_of(given.get("pref_loss", "sigmoid"))
    said.set("stage", "orpo" if (stage, loss) == ("dpo", "orpo") else stage)
    if said.overrides["stage"] == "dpo" and loss in _LOSSES:
        said.set("stage.loss", loss)
    elif said.overrides["stage"] == "dpo":
        wrong = f"{loss} is none of {', '.join((*_LOSSES, 'orpo'))}"
        said.refuse("pref_loss", loss, wrong, "set pref_loss to one of these")
    yield from ("stage", "pref_loss")
    if "ref_model" in given and given["ref_model"] == given.get("model_name_or_path"):
        said.same["ref_model"] = "the reference is the model before its first step"
        yield "ref_model"


def _method(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    kind = text_of(given.get("finetuning_type", "lora"))
    if kind not in _TYPES:
        raise refuse(
            "import-config",
            str(file),
            f"finetuning_type={kind} is none of {', '.join(_TYPES)}",
            because="it is read as a config of LLaMA-Factory (YAML or JSON)",
            fix="give it a file that `llamafactory-cli` takes, to train, to export, to chat or to eval",
        )
    method = kind
    if method == "full":
        method = next((ours for name, ours in _OPTIMIZED.items() if given.get(name)), "full")
        if method == "badam" and text_of(given.get("badam_mode", "layer")) == "ratio":
            method = "badam_ratio"
    for name in _OPTIMIZED if kind != "full" else ():
        if given.get(name):
            wrong = f"it is of finetuning_type=full here, not of {kind}"
            said.refuse(name, True, wrong, "set finetuning_type=full, or take the line out of the file")
    first, *others = [name for name in _VARIANTS if given.get(name) and method == "lora"] or [None]
    method = _VARIANTS[first] if first else method
    for key, value in (_ALSO[name] for name in others if name in _ALSO):
        said.set(f"method.{key}", value)
    if method == "lora" and given.get("quantization_bit") == 4:
        method = "qlora"
        _quantized_by(given, said)
    else:
        yield from quantized(given, said, file)
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


def quantized(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if (bits := given.get("quantization_bit")) is not None:
        said.set("method.quantization.bits", bits)
    _quantized_by(given, said)
    yield from ("quantization_bit", "quantization_method")


def _quantized_by(given: Mapping[str, Any], said: Said) -> None:
    if given.get("quantization_method") not in (None, "bnb", "bitsandbytes"):
        said.set("method.quantization.method", given["quantization_method"])


def _new_layers(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """use_llama_pro trains the layers that a script has added to the model; here the run adds them itself."""
    yield "use_llama_pro"
    if not given.get("use_llama_pro"):
        return
    model, count = text_of(given.get("model_name_or_path")), given.get("freeze_trainable_layers", 2)
    kind = text_of(given.get("finetuning_type", "lora"))
    modules = names_of(given.get("freeze_trainable_modules", "all")) + names_of(given.get("freeze_extra_modules"))
    if kind != "freeze":
        wrong = f"finetuning_type={kind} trains no added layers alone here"
        said.refuse("use_llama_pro", True, wrong, "set finetuning_type=freeze, or take use_llama_pro out of the file")
    elif modules != ["all"]:
        wrong = f"method=llama_pro trains the added layers whole and nothing else, not {', '.join(modules)}"
        fix = "set freeze_trainable_modules=all and take freeze_extra_modules out of the file"
        said.refuse("use_llama_pro", True, wrong, fix)
    elif tables.option_of("model", model) is None:
        wrong = f"nobody knows whether layers were added to {model} already: method=llama_pro adds them itself"
        said.refuse("use_llama_pro", True, wrong, _UNEXPANDED.format(count=count))
    else:
        said.set("method", "llama_pro")
        said.set("method.num_new_layers", count)
        said.noted["use_llama_pro"] = (
            f"the run adds the layers itself, so {model} is taken as it was published, without them; there a script "
            "adds them before"
        )
    yield from ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")


def _optimizer(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """use_muon, which LLaMA-Factory asks after those that have an optimizer of their own, and before `optim`."""
    yield "use_muon"
    if not given.get("use_muon"):
        return
    if before := next((name for name in (*_OPTIMIZED, "loraplus_lr_ratio") if given.get(name)), None):
        said.same["use_muon"] = f"{before} comes before it there too"
        return
    said.set("stage.optimizer", "muon")
    if "optim" in given:
        said.same["optim"] = "use_muon comes before it there too"
        yield "optim"


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
        why = "layers of these numbers train in the tower there, and not here" if parts else "nothing would train"
        for key in asked:
            said.refuse(key, given[key], why, "let the language model train, or set finetuning_type=full")
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
    if given.get(f"{said.overrides['method']}_layerwise"):
        said.set("stage.max_grad_norm", None)
        said.noted["max_grad_norm"] = (
            "stage.max_grad_norm=null: each tensor is stepped within the backward pass, so that no norm of all of them "
            "cuts a gradient, there as here; method.max_grad_norm_per_tensor cuts those of each tensor"
        )
        yield "max_grad_norm"


def _rollouts(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if said.overrides["stage"] != "ppo":
        return
    sizes = [given[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "ppo_buffer_size")]
    if all(isinstance(size, int) for size in sizes):
        said.set("stage.rollout_batch_size", prod(sizes))
        yield "ppo_buffer_size"
    if given.get("reward_model_type") == "api":
        said.refuse("reward_model_type", "api", "stage.reward_model is a saved model here, and no server", _SERVED)
        yield from ("reward_model_type", "reward_model")
    said.set("stage.kl_coefficient", 0.2)  # TRL 0.9's, which LLaMA-Factory has no key for


def _adapter(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """The one that training goes on from."""
    yield from adapter(given, said, file)
    if "model.adapter" not in said.overrides:
        return
    if given.get("create_new_adapter"):
        wrong = "the run goes on from the adapter; there it is merged, and a new one is trained"
        said.refuse("create_new_adapter", True, wrong, _MERGED)
    elif said.overrides["stage"] in ("kto", "ppo") or said.overrides.get("stage.loss", "simpo") != "simpo":
        said.noted["adapter_name_or_path"] = "the reference is the model with this adapter; there it is without"
    yield "create_new_adapter"


def adapter(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    adapters = names_of(given.get("adapter_name_or_path"))
    yield "adapter_name_or_path"
    if len(adapters) > 1:
        said.refuse("adapter_name_or_path", ",".join(adapters), "one adapter is read here, not several", _MERGED)
    elif adapters:
        said.set("model.adapter", adapters[0])


def model(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    path = given.get("model_name_or_path")
    if path is None:
        said.missing["model_name_or_path"] = "the file names no model; add model=NAME or model.path=FOLDER"
        return
    option = tables.option_of("model", path)
    said.set("model" if option else "model.path", option or path)
    yield "model_name_or_path"


def template(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    name = given.get("template")
    ours = "auto" if name is None else table()["templates"].get(text_of(name), text_of(name))
    if ours == "auto" or ours in templates.names():
        said.set("model.template", ours)
        if notes := [*_told_of(ours, said)]:
            said.noted["template"] = "; ".join(notes)
    else:
        said.missing["template"] = (
            f"there is no {ours} here, so the model's own is kept; to write it so, model.template={ours}.yaml, "
            "a file of your own (docs/contributing.md)"
        )
    yield "template"


def system(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """default_system, which rows without a system text get there: here that is a part of a template."""
    yield "default_system"
    if "default_system" not in given:
        return
    if said.overrides.get("stage") == "pt":
        said.same["default_system"] = "plain text has no system text, here as there"
    else:
        wrong = "rows without a system text would get the template's, or none: here it is a key of a template's file"
        said.refuse("default_system", given["default_system"], wrong, _SYSTEM)


def _told_of(ours: str, said: Said) -> Iterator[str]:
    if otherwise := table()["written_otherwise"].get(ours):
        yield f"written here as its source does; LLaMA-Factory writes {otherwise}"
    several = said.verb == "train" and said.overrides["stage"] == "sft"  # of a conversation's answers
    if several and ours != "auto" and not templates.template(ours).closes:
        yield (
            "it closes no answer, so that the end-of-text token is trained after a conversation's last one; "
            "LLaMA-Factory trains it at the end of each"
        )


KINDS = stage_of, _method, _new_layers, _optimizer, _parts
REST = _counted, _rollouts, _adapter, model, template, system
