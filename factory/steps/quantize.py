"""Quantize: how the frozen base is held (QLoRA section 3; LLM.int8, Dettmers et al. 2022a).

A base is quantized while it is read (transformers takes the library's configuration), or in place afterwards. A
checkpoint that is quantized already says so in its config.json, and is read as it is.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from factory.config.settings import Quantization
from factory.estimate.speed import precision
from factory.execute.context import Run
from factory.quantizers.spec import IN_PLACE, reading


@dataclass(frozen=True, slots=True)
class InPlace:
    """Weights are read whole; then the linear layers are quantized where they are, as only hqq is."""

    plan: Quantization
    compute_dtype: Any


def quantize(run: Run) -> dict[str, Any]:
    import torch

    steps, asked = run.plan.steps, run.plan.settings.method.quantization
    if asked.bits is None:
        return {"quantization": of_checkpoint(steps.load.config, steps.load.device)}
    found = held(asked, getattr(torch, precision(run.plan)))
    if run.plan.settings.hardware.strategy == "fsdp":  # splits numbers, not bytes
        found.bnb_4bit_quant_storage = torch.float32
    return {"quantization": found}


def held(plan: Quantization, compute_dtype: Any) -> Any:
    """How every linear layer but the head is to be quantized: a configuration for transformers, or InPlace."""
    if plan.method in IN_PLACE:
        return InPlace(plan, compute_dtype)
    return _CONFIGS[plan.method](plan, compute_dtype)


def of_checkpoint(config: dict[str, Any], device: str) -> Any:
    """A quantized checkpoint's own configuration with what only matters while reading it; None: it needs nothing."""
    attributes = reading(config, device)
    if attributes is None:
        return None
    from transformers.quantizers.auto import AutoQuantizationConfig

    return AutoQuantizationConfig.from_dict({**config["quantization_config"], **attributes})


def while_reading(quantization: Any) -> Any:
    """What `from_pretrained` takes as its quantization_config."""
    return None if isinstance(quantization, InPlace) else quantization


def after_reading(model: Any, quantization: Any, names: Iterable[str]) -> None:
    """What is left to do once the weights are there. `names`: the linear layers, as in `arch.linears()`."""
    if isinstance(quantization, InPlace):
        for name in names:
            model.set_submodule(name, _hqq_layer(model.get_submodule(name), quantization))
    keep_gradients(model)


def whole(model: Any, dtype: Any) -> Any:
    """The model with every quantized layer as a plain one of the weights that it stands for, in `dtype`."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for name in [name for name, module in model.named_modules() if _holds_bits(module)]:
        from peft.utils.integrations import dequantize_module_weight

        layer = model.get_submodule(name)
        weight = layer.weight.dequantize() if _is_subclass(layer) else dequantize_module_weight(layer)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
        if turned := getattr(layer, "source_cls", None) is Conv1D:  # GPT-2's, which bitsandbytes has turned
            plain = Conv1D(weight.shape[0], weight.shape[1])
        weight = weight.T.contiguous() if turned else weight
        plain.weight = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        if layer.bias is not None:
            plain.bias = torch.nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(name, plain)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, flag, False):
            setattr(model, flag, False)
    return model


def cast_what_is_whole(model: Any, dtype: Any) -> None:
    """What is quantized stays worth what it is; the rest, and what is computed, is of `dtype`."""
    for module in model.modules():
        packed = {"weight"} if _holds_bits(module) else set[str]()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in packed and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


# of bitsandbytes, hqq, quanto: layers of their own
_LAYERS = ("Linear4bit", "Linear8bitLt", "HQQLinear", "QLinear")


def _holds_bits(module: Any) -> bool:
    return type(module).__name__ in _LAYERS or _is_subclass(module)


def _is_subclass(module: Any) -> bool:
    """Whether a layer's weight is a tensor of another library's kind, as torchao's and quanto's are."""
    import torch

    weight = getattr(module, "weight", None)
    own = isinstance(module, torch.nn.Linear) and weight is not None
    return own and type(weight).__module__.partition(".")[0] in ("torchao", "optimum")


def keep_gradients(model: Any) -> None:
    """On CPUs with avx512_bf16, bitsandbytes repacks 4-bit weights during evaluation; gradients are lost from then."""
    if "bitsandbytes" not in sys.modules:  # its import takes seconds, and a model of its layers has imported it
        return
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


# --- configurations for transformers


def _bitsandbytes_config(plan: Quantization, compute_dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if plan.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.type,
        bnb_4bit_use_double_quant=plan.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _torchao_config(_plan: Quantization, _compute_dtype: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _quanto_config(_plan: Quantization, _compute_dtype: Any) -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


_CONFIGS: dict[str, Callable[[Quantization, Any], Any]] = {
    "bitsandbytes": _bitsandbytes_config,
    "torchao": _torchao_config,
    "quanto": _quanto_config,
}


def _hqq_layer(layer: Any, how: InPlace) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # pyright: ignore[reportMissingImports]

    settings = BaseQuantizeConfig(nbits=how.plan.bits, group_size=64, axis=1)
    made = HQQLinear(layer, settings, compute_dtype=how.compute_dtype, device=str(layer.weight.device))
    return made.requires_grad_(False)
