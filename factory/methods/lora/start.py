"""Adapters that start from the weights: A and B take a part out of them, the base keeps the rest.

Each start gives what the base keeps, B and A, of a weight as (out, in): base + scale · BA is, or is near, the weight.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.lora.spec import Settings, scaling, targets
from factory.methods.lora.targets import PREFIX
from factory.schema import Quantization

Round = Callable[[Tensor], Tensor]  # what quantizing and dequantizing makes of a weight
Start = Callable[[Tensor, Settings, Round], tuple[Tensor, Tensor, Tensor]]


def principal(weight: Tensor, rank: int, scale: float, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """B and A whose scaled product is the nearest matrix of that rank; about so, by a randomized SVD's iterations."""
    if iterations is None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vt = v.T
    root = (s[:rank] / scale).sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def pissa(weight: Tensor, method: Settings, rounded: Round) -> tuple[Tensor, Tensor, Tensor]:
    """The principal singular values and vectors (Meng et al. 2024, PiSSA, equations 2 to 4)."""
    b, a = principal(weight, method.rank, scaling(method), method.iterations)
    return weight - scaling(method) * b @ a, b, a


def olora(weight: Tensor, method: Settings, rounded: Round) -> tuple[Tensor, Tensor, Tensor]:
    """The first columns of Q and rows of R (Büyükakyüz 2024, OLoRA)."""
    q, r = torch.linalg.qr(weight)
    b, a = q[:, : method.rank], r[: method.rank]
    return weight - scaling(method) * b @ a, b, a


def loftq(weight: Tensor, method: Settings, rounded: Round) -> tuple[Tensor, Tensor, Tensor]:
    """Rounding and SVD in turn, until both together are near the weight (Li et al. 2023, LoftQ, algorithm 1)."""
    assert method.iterations is not None  # a rule
    base = weight
    b, a = principal(weight - rounded(base), method.rank, scaling(method))
    for _ in range(method.iterations - 1):
        base = weight - scaling(method) * b @ a
        b, a = principal(weight - rounded(base), method.rank, scaling(method))
    return base, b, a


STARTS: dict[str, Start] = {"pissa": pissa, "olora": olora, "loftq": loftq}


def round_trip(weight: Tensor, quantize: Quantization, dtype: torch.dtype) -> Tensor:
    """What a weight that is held as `dtype` is worth after bitsandbytes has quantized it."""
    from bitsandbytes import functional

    held = weight.to(dtype).contiguous()
    if quantize.bits == 8:
        rows, largest, _ = functional.int8_vectorwise_quant(held.half())
        return rows.float() * largest[:, None] / 127
    packed, state = functional.quantize_4bit(
        held, compress_statistics=quantize.double_quantization, quant_type=quantize.type
    )
    return functional.dequantize_4bit(packed, state).float()


def initialize(model: Any, method: Settings, quantize: Quantization, arch: Architecture) -> dict[str, Tensor]:
    """Takes the start of A and B out of the model's weights; returns it by the names that the parameters will have."""
    from transformers.pytorch_utils import Conv1D

    first: dict[str, Tensor] = {}
    for name in targets(method, arch):
        module = model.get_submodule(name)
        turned = isinstance(module, Conv1D)  # its weight lies as (in, out)
        held = module.weight.data
        weight = held.T.float() if turned else held.float()
        rest, b, a = STARTS[method.initialization](
            weight, method, lambda value, dtype=held.dtype: round_trip(value, quantize, dtype)
        )
        held.copy_(rest.T if turned else rest)
        first[f"{PREFIX}{name}.lora_A.default.weight"] = a.contiguous()
        first[f"{PREFIX}{name}.lora_B.default.weight"] = b.contiguous()
    return first
