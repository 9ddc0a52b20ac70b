from math import sqrt
from pathlib import Path
from typing import Any

from factory import vocabulary
from factory.architecture import Architecture
from factory.methods.lora.spec import Settings, starts_from_weights, targets
from factory.methods.lora.start import initialize
from factory.optimizers.run import plain
from factory.plan import Attach, Train
from factory.refusal import refuse

__all__ = ["attach", "begin", "export", "go_on", "initialize", "optimizer"]

WEIGHTS = "adapter_model.safetensors"
# what changes an adapter's effect, or its shapes, under the same names
_SAME = (
    "peft_type",
    "r",
    "lora_alpha",
    "alpha",
    "use_rslora",
    "use_dora",
    "oft_block_size",
    "use_cayley_neumann",
    "num_cayley_neumann_terms",
    "projection_prng_key",
)


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    from peft import LoraConfig

    adapted = targets(settings, arch)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whole or not
        lora_dropout=settings.dropout,
        target_modules=list(adapted),
        target_parameters=list(arch.experts()) if settings.target_experts else None,
        fan_in_fan_out=any_transposed(model, adapted),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights="gaussian" if settings.initialization == "gaussian" else True,
        task_type="CAUSAL_LM",
        **vocabulary.adapted(arch, arch.new_rows),
    )
    return wrap(model, config, plan)


def wrap(model: Any, config: Any, plan: Attach) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, config, autocast_adapter_dtype=plan.dtype == "float32")


def any_transposed(model: Any, adapted: Any) -> bool:
    """Whether the layers hold their weights as (in, out), as GPT-2's do until they are quantized."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(model.get_submodule(name), Conv1D) for name in adapted)


def optimizer(model: Any, settings: Settings, plan: Train, arch: Architecture) -> Any:
    """LoRA+ (Hayou et al. 2024): B, and only B, learns at its own rate."""

    def ratio(name: str) -> float:
        return settings.b_learning_rate_ratio if ".lora_B." in name else 1.0

    return plain(model, settings, plan, arch, ratio=ratio)


def begin(model: Any, first: dict[str, Any]) -> None:
    """Puts A and B where they start, by the names of the parameters; `export` needs it once more."""
    import torch

    with torch.no_grad():
        for name, value in first.items():
            model.get_parameter(name).copy_(value)
    model.adapter_start = first


def save(model: Any, settings: Any, folder: Path) -> None:
    """The adapter as PEFT reads it."""
    # "auto" would ask the hub whether the vocabulary has changed
    model.save_pretrained(folder, save_embedding_layers=False)


def export(model: Any, settings: Settings, folder: Path) -> None:
    """The adapter as PEFT reads it, for the base as it was.

    What A and B took out of the weights at their start is given back: BA - B₀A₀ is the adapter [B, -B₀][A; A₀] of twice
    the rank (Meng et al. 2024, PiSSA, appendix C).
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    save(model, settings, folder)
    if not starts_from_weights(settings):
        return
    weights = load_file(folder / WEIGHTS)
    for name, value in model.adapter_start.items():
        key = name.replace(".default.", ".")
        trained, start = weights[key], value.to(weights[key])
        both = [trained, start] if ".lora_A." in key else [trained, -start]
        weights[key] = torch.cat(both, dim=0 if ".lora_A." in key else 1).contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.r, config.lora_alpha = 2 * config.r, config.lora_alpha * (sqrt(2) if settings.rslora else 2)
    config.save_pretrained(folder)


def go_on(model: Any, path: str) -> None:
    """Loads a saved adapter's weights (a folder or a hub id) into the attached ones. Raises UserError."""
    from peft import PeftConfig, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    setting = f"model.adapter={path}"
    try:
        saved, weights = PeftConfig.from_pretrained(path), load_peft_weights(path, device="cpu")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise refuse("adapter-unreadable", setting, str(error).splitlines()[0].rstrip(".")) from error
    config = model.peft_config["default"]
    bases = [str(found.base_model_name_or_path).rstrip("/").rpartition("/")[2] for found in (saved, config)]
    if bases[0].lower() != bases[1].lower():
        raise refuse("adapter-other", setting, f"its base is {bases[0]}, this run's {bases[1]}")
    for name in _SAME:
        there, here = getattr(saved, name, None), getattr(config, name, None)
        if there != here:
            raise refuse("adapter-other", setting, f"it has {name}={_plain(there)}, this run {name}={_plain(here)}")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted({*own, *weights}):
        shapes = [list(tensors[name].shape) if name in tensors else "no such tensor" for tensors in (weights, own)]
        if shapes[0] != shapes[1]:
            raise refuse("adapter-other", setting, f"{name}: {shapes[0]} there, {shapes[1]} here")
    result = set_peft_model_state_dict(model, weights)
    assert not result.unexpected_keys, result.unexpected_keys


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
