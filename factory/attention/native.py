"""Exact attention in C (native/attention.c), where the processor has instructions for its numbers.

What a mask lets a token see is handed over as stretches of its row; of any other mask the caller does it by blocks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from factory import products
from factory.attention.mask import Mask, Spans
from factory.attention.operation import define
from factory.native import kernels

_AT_ONCE = 256  # queries whose keys are looked at together


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, scale: float) -> Tensor | None:
    """(batch, heads, length, dim) to (batch, length, heads, dim); None: it is not made here."""
    kind = products.through(query.dtype, query[0, 0])
    if not kernels.attends(kind, query, key, value):
        return None
    spans = None if mask is None else mask.once("stretches", partial(_stretches, mask, query.shape[2]))
    if mask is not None and spans is None:
        return None
    return Native.apply(query, key, value, spans, scale)  # type: ignore[no-any-return]


def _stretches(mask: Mask, length: int) -> Tensor | None:
    """As of `Spans`, (batch, 3, length) in int32; None: some token does not see all from one before it to itself.

    Who sees nothing, as padding does, sees itself: nobody reads what comes of it.
    """
    if isinstance(mask, Spans):
        return mask.spans[:, 0].to(torch.int32).contiguous()
    found, tokens = list[Tensor](), torch.arange(length, device=mask.device)
    for start in range(0, length, _AT_ONCE):
        queries = tokens[start : start + _AT_ONCE]
        seen = mask.seen(queries[:, None], tokens[None, : start + len(queries)])
        own = torch.where(seen.any(-1), seen.to(torch.uint8).argmax(-1), queries)
        if not torch.equal(seen.sum(-1), torch.where(seen.any(-1), queries + 1 - own, 0)):
            return None
        found.append(own)
    own = torch.cat(found, -1).to(torch.int32)
    return torch.stack([own, torch.zeros_like(own), torch.zeros_like(own)], 1)


class Native(Function):
    """Causal attention, softmax(scale Q K') V; keeps what goes in, what comes out, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, scale: float) -> Tensor:
        made, sums = torch.ops.factory.attend_native(query, key, value, spans, scale)
        ctx.save_for_backward(query, key, value, spans, made, sums)
        ctx.scale = scale
        return made  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        query, key, value, spans, made, sums = ctx.saved_tensors
        given, kind = query.dtype, products.through(query.dtype, query[0, 0])
        slope, query, key, value, made = (each.to(kind) for each in (slopes[0], query, key, value, made))
        found = kernels.attend_back(slope, query, key, value, spans, ctx.scale, made, sums)
        return *(each.to(given) for each in found), None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`Native`; and of each query the logarithm of its sum of exp(score), (batch, heads, length)."""
    kind, (made, sums) = products.through(query.dtype, query[0, 0]), _shapes(query, key, value, spans, scale)
    query, key, value = (each.to(kind) for each in (query, key, value))
    wide = made if kind == made.dtype else made.new_empty(made.shape, dtype=kind)
    kernels.attend(query, key, value, spans, scale, wide, sums)
    return made if wide is made else made.copy_(wide), sums


def _shapes(query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    sums = query.new_empty(batch, heads, length, dtype=torch.float32)
    return query.new_empty(batch, length, heads, value.shape[-1]), sums


define(
    "attend_native(Tensor query, Tensor key, Tensor value, Tensor? spans, float scale) -> (Tensor, Tensor)",
    _attend,
    _shapes,
)
