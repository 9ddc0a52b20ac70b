"""Quantize: how the frozen base is held (QLoRA section 3; LLM.int8, Dettmers et al. 2022a).

A base is quantized while it is read (transformers takes the library's configuration), or in place afterwards. A
checkpoint that is quantized already says so in its config.json, and is read as it is.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from factory.execute.context import Run
from factory.quantizers.spec import IN_PLACE, reading
from factory.schema import Quantization


@dataclass(frozen=True, slots=True)
class InPlace:
    """Weights are read whole; then the linear layers are quantized where they are."""

    plan: Quantization
    compute_dtype: Any


def quantize(run: Run) -> dict[str, Any]:
    import torch

    steps = run.plan.steps
    if steps.quantize.bits is None:
        return {"quantization": of_checkpoint(steps.load.config, steps.load.device)}
    return {"quantization": held(steps.quantize, getattr(torch, steps.train.autocast or steps.load.dtype))}


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
        quantize_below(model, quantization.plan, quantization.compute_dtype, names)
    keep_gradients(model)


def quantize_below(model: Any, plan: Quantization, compute_dtype: Any, names: Iterable[str]) -> None:
    """Quantizes the named linear layers in place, from the weights that they hold now, on the device where they are.

    `names` are as in `arch.linears()`, also where adapters stand already: then the layer under the adapter is replaced.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    for name in names:
        below = f"{name}.base_layer" if isinstance(inner.get_submodule(name), BaseTunerLayer) else name
        inner.set_submodule(below, _LAYERS[plan.method](inner.get_submodule(below), plan, compute_dtype))
    keep_gradients(model)


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


# --- one layer in place


def _bitsandbytes_layer(layer: Any, plan: Quantization, compute_dtype: Any) -> Any:
    return _int8_layer(layer) if plan.bits == 8 else _four_bit_layer(layer, plan, compute_dtype)


def _four_bit_layer(layer: Any, plan: Quantization, compute_dtype: Any) -> Any:
    import torch
    from bitsandbytes.nn import modules

    bnb: Any = modules  # its constructors are typed as those of torch's own classes
    with torch.device("meta"):
        made = bnb.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=compute_dtype)
    whole = bnb.Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=plan.double_quantization,
        quant_type=plan.type,
        module=made,
    )
    made.weight, made.bias = whole.to(layer.weight.device), layer.bias  # the move quantizes
    return made


_OUTLIERS = 6.0  # a column of activations that has a larger one is multiplied whole (LLM.int8, section 3.2)


def _int8_layer(layer: Any) -> Any:
    import torch
    from bitsandbytes.nn import modules

    bnb: Any = modules
    with torch.device("meta"):
        made = bnb.Linear8bitLt(
            layer.in_features, layer.out_features, bias=False, has_fp16_weights=False, threshold=_OUTLIERS
        )
    whole = bnb.Int8Params(layer.weight.data.to("cpu"), requires_grad=False, has_fp16_weights=False)
    made.weight, made.bias = whole.to(layer.weight.device), layer.bias  # the move from the CPU quantizes
    return made


def _hqq_layer(layer: Any, plan: Quantization, compute_dtype: Any) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # pyright: ignore[reportMissingImports]

    settings = BaseQuantizeConfig(nbits=plan.bits, group_size=64, axis=1)
    made = HQQLinear(layer, settings, compute_dtype=compute_dtype, device=str(layer.weight.device))
    return made.requires_grad_(False)


def _torchao_layer(layer: Any, _plan: Quantization, _compute_dtype: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

    quantize_(layer, Int8WeightOnlyConfig())
    layer.weight.requires_grad_(False)
    return layer


def _quanto_layer(layer: Any, _plan: Quantization, _compute_dtype: Any) -> Any:
    from optimum.quanto import QLinear, qint8  # pyright: ignore[reportMissingImports]

    made: Any = QLinear.from_module(layer, weights=qint8)
    made.freeze()
    made.weight.requires_grad_(False)
    return made


_LAYERS: dict[str, Callable[[Any, Quantization, Any], Any]] = {
    "bitsandbytes": _bitsandbytes_layer,
    "hqq": _hqq_layer,
    "torchao": _torchao_layer,
    "quanto": _quanto_layer,
}
