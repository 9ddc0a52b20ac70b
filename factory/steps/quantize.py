"""Quantize: how the frozen base is held (bitsandbytes, QLoRA section 3)."""

from typing import Any

from factory.execute.context import Run


def quantize(run: Run) -> dict[str, Any]:
    plan, train = run.plan.steps.quantize, run.plan.steps.train
    if plan.bits is None:
        return {"quantization": None}
    import torch
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=plan.type,
        bnb_4bit_use_double_quant=plan.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, train.autocast or run.plan.steps.load.dtype),
    )
    return {"quantization": quantization}


def keep_gradients(model: Any) -> None:
    """On CPUs with avx512_bf16, bitsandbytes repacks 4-bit weights during evaluation; gradients are lost from then."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
