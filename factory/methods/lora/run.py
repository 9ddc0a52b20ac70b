from pathlib import Path
from typing import Any

from factory.architecture import Architecture
from factory.config import registry
from factory.methods.lora.spec import Settings, scaling, starts_from_weights, written
from factory.methods.lora.start import Pair, Started, initialize
from factory.methods.lora.targets import Adapter, targets
from factory.optimizers.run import plain
from factory.plan.plan import Attach, Compiled

__all__ = ["attach", "begin", "export", "go_on", "initialize", "optimizer", "taken"]

WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    return wrap(
        model,
        settings,
        plan,
        arch,
        lora_dropout=settings.dropout,
        target_parameters=list(arch.experts()) if settings.target_experts else None,
        init_lora_weights="gaussian" if settings.initialization == "gaussian" else True,
        fan_in_fan_out=any_transposed(model, settings, arch),
    )


def _leave_casts_to_autocast(model: Any) -> None:
    """PEFT casts what goes into A to A's type, which autocast undoes: a copy for each layer, kept for the gradients.

    Not of DoRA, whose norms are taken in the input's type.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and not module.lora_variant:
            module._cast_input_dtype = _cast_without_autocast  # type: ignore[method-assign]


def _cast_without_autocast(value: Any, dtype: Any) -> Any:
    import torch

    return value if torch.is_autocast_enabled(value.device.type) else value.to(dtype)


def wrap(model: Any, settings: Adapter, plan: Attach, arch: Architecture, **free: Any) -> Any:
    """Attaches PEFT's adapters as the spec's `peft` says, and `free`: that in which a saved one may differ."""
    from peft import get_peft_config, get_peft_model

    said = registry.spec("methods", settings.name).peft(settings, arch)
    config = get_peft_config(
        {**said, **free, "target_modules": list(targets(settings, arch)), "task_type": "CAUSAL_LM"}
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=plan.dtype == "float32")
    _leave_casts_to_autocast(wrapped)
    return wrapped


def any_transposed(model: Any, settings: Adapter, arch: Architecture) -> bool:
    """Whether the layers hold their weights as (in, out), as GPT-2's do until they are quantized."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(model.get_submodule(name), Conv1D) for name in targets(settings, arch))


def optimizer(model: Any, settings: Settings, plan: Compiled, arch: Architecture) -> Any:
    """LoRA+ (Hayou et al. 2024): B, and only B, learns at its own rate."""

    def ratio(name: str) -> float:
        return settings.b_learning_rate_ratio if ".lora_B." in name else 1.0

    return plain(model, settings, plan, arch, ratio=ratio)


def begin(model: Any, started: Started) -> None:
    """Puts A and B where they start; what is saved needs it once more."""
    import torch

    with torch.no_grad():
        for name, value in started.first.items():
            model.get_parameter(name).copy_(value)
    model.adapter_start = started


def taken(model: Any, settings: Settings) -> tuple[float, dict[str, Pair]]:
    """What was taken out of the base's weights: so many times BA, B and A by the layers' names."""
    return scaling(settings), model.adapter_start.taken


def save(model: Any, settings: Any, folder: Path) -> None:
    """The trained adapter as PEFT reads it: a stage may hold frozen ones beside it."""
    # "auto" would ask the hub whether the vocabulary has changed
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)


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
    for name, value in model.adapter_start.first.items():
        key = name.replace(".default.", ".")
        trained, start = weights[key], value.to(weights[key])
        both = [trained, start] if ".lora_A." in key else [trained, -start]
        weights[key] = torch.cat(both, dim=0 if ".lora_A." in key else 1).contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.r, config.lora_alpha = written(settings).rank, written(settings).alpha
    config.save_pretrained(folder)


def go_on(model: Any, path: str) -> Any:
    """Loads a saved adapter's weights into the attached ones; that it is one of them is a rule."""
    from peft import load_peft_weights, set_peft_model_state_dict

    result = set_peft_model_state_dict(model, load_peft_weights(path, device="cpu"))
    assert not result.unexpected_keys, result.unexpected_keys
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not trained & set(result.missing_keys), sorted(trained & set(result.missing_keys))
    return model
