"""torch's fused kernel for rows that are one document each, on CPUs where it is faster than blocks.

With tiles of bfloat16 (AMX) it takes a third to two thirds of the time of blocks forwards, and less than they do
backwards as well where rows are long (docs/measurements.md).
Heads that share keys are a row of the kernel's batch, so that no key is repeated, and what comes out is laid out as
layers read it, so that nobody keeps it twice.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from factory.attention.operation import define

_AT_ONCE = 4  # heads

_forwards = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backwards = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def wins(query: Tensor, value: Tensor) -> bool:
    """Forwards, over blocks of queries."""
    return query.dtype == torch.bfloat16 and _fits(query, value) and _has_tiles()


def _fits(query: Tensor, value: Tensor) -> bool:
    """The kernel takes values as wide as keys."""
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


@lru_cache(None)
def _has_tiles() -> bool:
    """Older torch does not tell."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))


class Whole(Function):
    """Causal attention, softmax(scale Q K') V: (batch, heads, length, dim) to (batch, length, heads, dim)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        made, sums = torch.ops.factory.attend_whole(query, key, value, scale)
        ctx.save_for_backward(query, key, value, made, sums)
        ctx.scale = scale
        return made  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        query, key, value, made, sums = ctx.saved_tensors
        apart = [_apart(each, key.shape[1]) for each in (slopes[0].transpose(1, 2), query, made.transpose(1, 2))]
        shared = [_shared(each, apart[0].shape[2]) for each in (key, value)]
        slope, query, made, key, value = (each.flatten(0, 1) for each in (*apart, *shared))
        found = _backwards(slope, query, key, value, made, sums.flatten(0, 1), 0.0, True, scale=ctx.scale)
        by_query, by_key, by_value = (each.unflatten(0, (len(slopes[0]), -1)) for each in found)
        return by_query.flatten(1, 2), by_key.sum(2), by_value.sum(2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`Whole`; and of each row of scores the logarithm of its sum, (batch, key heads, sharing, length).

    A few heads at a time, and what stays before what goes: else what the kernel takes for itself leaves holes in the
    heap, 200 MiB of 4 GiB with 8,192 tokens.
    """
    batch, heads, length, dim = query.shape
    key_heads, sharing = key.shape[1], heads // key.shape[1]
    made = query.new_empty(batch, length, heads, dim)
    sums = made.new_empty(batch, key_heads, sharing, length, dtype=_type_of_sums(made))
    given = _apart(query, key_heads), _shared(key, sharing), _shared(value, sharing)
    for row in zip(_apart(made.transpose(1, 2), key_heads), sums, *given, strict=True):
        parts = (each.split(max(1, _AT_ONCE // sharing)) for each in row)
        for into, logarithms, *states in zip(*parts, strict=True):
            found, of_rows = _forwards(*states, 0.0, True, scale=scale)
            into.copy_(found)
            logarithms.copy_(of_rows)
    return made, sums


def _shapes(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    rows = batch, key.shape[1], heads // key.shape[1], length
    return query.new_empty(batch, length, heads, value.shape[-1]), query.new_empty(rows, dtype=_type_of_sums(query))


define("attend_whole(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)", _attend, _shapes)


def _type_of_sums(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _apart(states: Tensor, key_heads: int) -> Tensor:
    """(batch, heads, length, dim) to (batch, key heads, sharing, length, dim)."""
    return states.unflatten(1, (key_heads, -1))


def _shared(states: Tensor, sharing: int) -> Tensor:
    """(batch, key heads, length, dim) to (batch, key heads, sharing, length, dim), in the memory of the one head."""
    return states[:, :, None].expand(-1, -1, sharing, -1, -1)
