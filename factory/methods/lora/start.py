"""Adapters that start from the weights: A and B take a part out of them, the base keeps the rest.

Each start gives B and A of a weight as (out, in), and the pair that is taken out of it, None where nothing is: what the
base keeps, quantized or not, and scale · BA together are, or are near, the weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.config.settings import Quantization
from factory.methods.lora.spec import Settings, scaling, targets
from factory.methods.lora.targets import PREFIX
from factory.own_base import rest, turned

Round = Callable[[Tensor], Tensor]  # what quantizing and dequantizing makes of a weight
Pair = tuple[Tensor, Tensor]  # B and A
Start = Callable[[Tensor, Settings, Round], tuple[Pair, Pair | None]]


@dataclass(frozen=True, slots=True)
class Started:
    """`first` is where A and B start, by their parameters' names; `taken` what left the weights, by the layers' names.

    `taken` is kept in the machine's own memory: nothing reads it before the adapter is saved.
    """

    first: dict[str, Tensor]
    taken: dict[str, Pair]


def principal(weight: Tensor, rank: int, scale: float, iterations: int | None = None) -> Pair:
    """B and A whose scaled product is the nearest matrix of that rank; about so, by a randomized SVD's iterations."""
    if iterations is None:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vt = v.T
    root = (s[:rank] / scale).sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def pissa(weight: Tensor, method: Settings, rounded: Round) -> tuple[Pair, Pair | None]:
    """The principal singular values and vectors (Meng et al. 2024, PiSSA, equations 2 to 4)."""
    pair = principal(weight, method.rank, scaling(method), method.iterations)
    return pair, pair


def olora(weight: Tensor, method: Settings, rounded: Round) -> tuple[Pair, Pair | None]:
    """The first columns of Q and rows of R (Büyükakyüz 2024, OLoRA)."""
    q, r = torch.linalg.qr(weight)
    pair = q[:, : method.rank], r[: method.rank]
    return pair, pair


def loftq(weight: Tensor, method: Settings, rounded: Round) -> tuple[Pair, Pair | None]:
    """Rounding and SVD in turn, until both together are near the weight (Li et al. 2023, LoftQ, algorithm 1).

    The pair that is taken out is the turn's before: A and B start as what its rounding has lost.
    """
    assert method.iterations is not None  # a rule
    taken, pair = None, principal(weight - rounded(weight), method.rank, scaling(method))
    for _ in range(method.iterations - 1):
        taken = pair
        pair = principal(weight - rounded(rest(weight, scaling(method), *taken)), method.rank, scaling(method))
    return pair, taken


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


def initialize(model: Any, method: Settings, quantize: Quantization, arch: Architecture) -> Started:
    """Takes the start of A and B out of the model's weights."""
    started = Started({}, {})
    for name in targets(method, arch):
        module = model.get_submodule(name)
        held = module.weight.data
        weight = held.T.float() if turned(module) else held.float()
        (b, a), taken = STARTS[method.initialization](
            weight, method, lambda value, dtype=held.dtype: round_trip(value, quantize, dtype)
        )
        if taken is not None:
            left = rest(weight, scaling(method), *taken)
            held.copy_(left.T if turned(module) else left)
            started.taken[name] = (taken[0].cpu().contiguous(), taken[1].cpu().contiguous())
        started.first[f"{PREFIX}{name}.lora_A.default.weight"] = a.contiguous()
        started.first[f"{PREFIX}{name}.lora_B.default.weight"] = b.contiguous()
    return started
