"""LoRA's layers, frozen ones with an adapter beside each: those that read the same are one autograd function."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from factory import products
from factory.fused.again import read, reading
from factory.fused.few import Torch, way


class Adapted(NamedTuple):
    """A frozen linear layer with an adapter beside it: A, (rank, in), B, (out, rank), and s.

    `weight` makes W, (out, in): a quantized one is there while it is multiplied with.
    """

    a: Tensor
    b: Tensor
    scale: float
    weight: Callable[[], Tensor]
    bias: Tensor | None


def low_rank(x: Tensor, layers: Sequence[Adapted], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`LowRank`."""
    if not torch.is_grad_enabled():
        return _low_rank(x.to(dtype), layers)[1]
    pairs = [each for layer in layers for each in (layer.a, layer.b)]
    return LowRank.apply(x, layers, dtype, *pairs)  # type: ignore[no-any-return]


class LowRank(Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ of each layer in `dtype` (Hu et al. 2021, LoRA, equation 3), summed in the products.

    The small sum comes first and the large one is added to it within the product, so that both are rounded as one: what
    is below the last digit of x Wᵀ, as most of an adapter's first steps in bfloat16, would be lost beside it.

    x: (…, in). Layers that read the same x, alike in s and in their types, have one product with all their A and one
    gradient in x: a small product takes as long as its start. `pairs`: A and B of each, for autograd to see.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: Sequence[Adapted], dtype: torch.dtype, *pairs: Tensor
    ) -> tuple[Tensor, ...]:
        narrow = x.to(dtype)
        ctx.small, made, low = _low_rank(narrow, layers)
        ctx.again, kept = reading(x, narrow)
        ctx.save_for_backward(low.to(dtype), *pairs, *kept)
        ctx.weights, ctx.scale = [layer.weight for layer in layers], layers[0].scale
        ctx.types, ctx.shape = (x.dtype, dtype), x.shape
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        (low, *saved), (given, dtype), learns = ctx.saved_tensors, ctx.types, ctx.needs_input_grad[3:]
        every_a, every_b, kept = saved[: len(learns) : 2], saved[1 : len(learns) : 2], tuple(saved[len(learns) :])
        by_pair: list[Any] = [None] * len(learns)  # before what is made on the way, as in _low_rank
        by_a = every_a[0].new_empty(sum(a.shape[0] for a in every_a), every_a[0].shape[1]) if any(learns[::2]) else None
        by_pair[1::2] = [torch.empty_like(b) if any(learns[1::2]) else None for b in every_b]
        wide = products.through(dtype, slopes[0])
        slopes = tuple(slope.reshape(-1, slope.shape[-1]).to(wide) for slope in slopes)
        small: type[Torch] = ctx.small
        low = small.between(low, wide)
        by_low = torch.empty_like(low)
        for part, slope, b in zip(_by_layer(by_low, every_a, 1), slopes, every_b, strict=True):
            small.by_low(slope, b, ctx.scale, part)
        if by_a is not None:
            small.outer(by_low, read(ctx.again, kept, dtype).to(wide), 1.0, by_a)
            by_pair[::2] = _by_layer(by_a, every_a, 0)
        for by_b, slope, part in zip(by_pair[1::2], slopes, _by_layer(low, every_a, 1), strict=True):
            if by_b is not None:
                small.outer(part, slope, ctx.scale, by_b, turned=True)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = small.by_x(by_low, every_a, wide)
            for slope, weight in zip(slopes, ctx.weights, strict=True):
                products.add_back(by_x, slope, weight())
            by_x = by_x.view(ctx.shape).to(given)
        return by_x, None, None, *by_pair


def _low_rank(x: Tensor, layers: Sequence[Adapted]) -> tuple[type[Torch], tuple[Tensor, ...], Tensor]:
    """How small products are made; what `LowRank` makes of x, in its type; and x Aᵀ of all layers, (tokens, ranks).

    What stays is allocated before what is made on the way, which would leave holes between.
    """
    every_a = [layer.a for layer in layers]
    made = tuple(x.new_empty(*x.shape[:-1], layer.b.shape[0]) for layer in layers)
    wide = x.reshape(-1, x.shape[-1]).to(products.through(x.dtype, x))
    small = way(wide, every_a, [layer.b for layer in layers])
    low = small.down(wide, every_a)
    for out, part, layer in zip(made, _by_layer(low, every_a, 1), layers, strict=True):
        _one_low_rank(out.view(-1, out.shape[-1]), wide, part, layer, small)
    return small, made, low


def _one_low_rank(out: Tensor, x: Tensor, low: Tensor, layer: Adapted, small: type[Torch]) -> None:
    """Into `out`, which may be narrower than x."""
    into = out if out.dtype == x.dtype else x.new_empty(out.shape)
    small.up(low, layer.b, layer.scale, into)
    products.add(into, x, layer.weight())
    if layer.bias is not None:
        into.add_(layer.bias.to(x.dtype))
    if into is not out:
        out.copy_(into)


def _by_layer(of_all: Tensor, every_a: Sequence[Tensor], dim: int) -> tuple[Tensor, ...]:
    return (of_all,) if len(every_a) == 1 else of_all.split([a.shape[0] for a in every_a], dim)
