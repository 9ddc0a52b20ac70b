"""Exact attention by blocks of queries, for a CPU: products of matrices, which it is fast at, in place of one kernel.

A block of queries meets the keys from the first that one of them sees to its own last: half of a causal matrix is never
made, and of packed documents only what lies within them. What is kept for the gradients is what goes in and what comes
out, as of torch's fused kernel (Dao et al. 2022, arXiv 2205.14135, section 3.1); the scores are made again.

Scores are held in the type of the queries, so in bfloat16 they are rounded as in transformers' own way (`eager`).
Measured beside torch's kernel in docs/measurements.md; where that is faster (`flash`), it stands in.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.attention import BLOCKS, LONG, block_of, flash, key_step
from factory.attention.mask import FOREIGN, Mask, mask, spans, whole
from factory.attention.operation import define


def register() -> None:
    """Makes `blocks` a name for `attn_implementation`, in this process."""
    AttentionInterface.register(BLOCKS, attend)
    AttentionMaskInterface.register(BLOCKS, mask)


_softmax_slopes = torch.ops.aten._softmax_backward_data.out


class Seen(NamedTuple):
    """Of each block of queries: its first key, and what is added to the scores of its last keys.

    A mask is (batch or 1, 1, 1, block, keys): 0 where a key is seen, else the lowest number, so that a query that sees
    nothing (padding) has a mean of values and no NaN. Both ends of the keys are multiples of `key_step`.
    """

    starts: list[int]
    masks: list[Tensor]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    use_cache: bool | None = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """In transformers' attention interface: (batch, heads, length, dim) to (batch, length, heads, dim)."""
    length = query.shape[2]
    if isinstance(attention_mask, Tensor):
        attention_mask = spans(attention_mask) or attention_mask
    if use_cache or length != key.shape[2] or dropout or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(module, query, key, value, whole(attention_mask), dropout, scaling, **others)
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    assert not foreign, f"attention by blocks knows no {foreign}"
    assert module.is_causal, "attention by blocks is causal"
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (each.to(torch.get_autocast_dtype(query.device.type)) for each in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    fused = attention_mask is None and flash.wins(query, value)
    if length >= LONG and fused:
        return flash.Whole.apply(query, key, value, scale), None
    if attention_mask is None:
        seen = _causal(length, query.dtype, query.device)
    else:
        seen = _of(attention_mask, length, query.dtype)
    return _Attend.apply(query, key, value, seen.starts, scale, fused, *seen.masks), None


@lru_cache(maxsize=8)  # all layers keep the same
def _causal(length: int, dtype: torch.dtype, device: torch.device) -> Seen:
    step, block = key_step(length), block_of(length)
    places, starts = torch.arange(step, device=device), range(0, length, block)
    inside = {start % step for start in starts}
    later = {start: _added((places[start : start + block, None] >= places)[None], dtype) for start in inside}
    return Seen([0] * len(starts), [later[start % step] for start in starts])


def _of(mask: Mask, length: int, dtype: torch.dtype) -> Seen:
    return mask.once((BLOCKS, dtype), partial(_made, mask, length, dtype))  # type: ignore[no-any-return]


def _made(mask: Mask, length: int, dtype: torch.dtype) -> Seen:
    found, step, block = Seen([], []), key_step(length), block_of(length)
    tokens = torch.arange(length, device=mask.device)
    for start in range(0, length, block):
        queries = tokens[start : start + block]
        seen = mask.seen(queries[:, None], tokens[None, : start + len(queries)])
        first = int(seen.flatten(0, 1).any(0).to(torch.uint8).argmax()) // step * step
        wide = _up(start + len(queries), step)
        unseen = (0, wide - seen.shape[-1], 0, block - len(queries))
        found.starts.append(first)
        found.masks.append(_added(functional.pad(seen, unseen)[..., first:], dtype))
    return found


def _up(length: int, step: int) -> int:
    return -(-length // step) * step


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, queries, keys) to what is added to scores."""
    least = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, least)[:, None, None]


# --- one operation: what recomputes activations selectively keeps none of the scores


def _attend(query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float) -> Tensor:
    """(batch, heads, length, dim), keys and values of as many heads or fewer, to (batch, length, heads, dim)."""
    batch, _, length, _ = query.shape
    queries, keys, values = _tiles(query, key.shape[1]), _wide(key), _wide(value)
    out = queries.new_empty(*queries.shape[:-1], value.shape[-1])
    scores = _Scores(queries, keys, 2)
    for tile, into, unseen, at in zip(queries, out, masks, _keys_at(length, starts), strict=True):
        torch.bmm(scores.weights(tile, keys[:, at], unseen, scale), values[:, at], out=into)
    return _together(out, batch, length)


def _shapes(query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1])


define(
    "attend_blocks(Tensor query, Tensor key, Tensor value, Tensor[] masks, SymInt[] starts, float scale) -> Tensor",
    _attend,
    _shapes,
)


def _slopes(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float
) -> list[Tensor]:
    """Gradients of queries, keys and values. With P the weights and S the scores: dV = P'dO, dS = P (dP - sum P dP)."""
    batch, _, length, _ = query.shape
    queries, slopes = _tiles(query, key.shape[1]), _tiles(grad.transpose(1, 2), key.shape[1])
    keys, values = _wide(key), _wide(value)
    by_query, by_key, by_value = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    scores = _Scores(queries, keys, 3)
    tiles = zip(queries, slopes, by_query, masks, _keys_at(length, starts), strict=True)
    for tile, slope, into, unseen, at in tiles:
        weights = scores.weights(tile, keys[:, at], unseen, scale)
        by_value[:, at].baddbmm_(weights.transpose(1, 2), slope)
        by_weight, _, room = scores.of(weights.shape[-1])
        torch.bmm(slope, values[:, at].transpose(1, 2), out=by_weight)
        by_score = _softmax_slopes(by_weight, weights, -1, weights.dtype, grad_input=room)
        torch.baddbmm(into, by_score, keys[:, at], beta=0, alpha=scale, out=into)
        by_key[:, at].baddbmm_(by_score.transpose(1, 2), tile, alpha=scale)
    of_key, of_value = (each.unflatten(0, (batch, -1))[:, :, :length].contiguous() for each in (by_key, by_value))
    return [_together(by_query, batch, length).transpose(1, 2), of_key, of_value]


class _Attend(Function):
    """Its own derivative: of an operation that takes a list of tensors, torch.library's takes 0.15 ms more a call.

    `fused`: the way forward is torch's kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: list[int],
        scale: float,
        fused: bool,
        *masks: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, *masks)
        ctx.starts, ctx.scale = starts, scale
        if fused:
            return torch.ops.factory.attend_whole(query, key, value, scale)[0]  # type: ignore[no-any-return]
        return torch.ops.factory.attend_blocks(query, key, value, list(masks), starts, scale)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        query, key, value, *masks = ctx.saved_tensors
        found = _slopes(slopes[0], query, key, value, masks, ctx.starts, ctx.scale)
        return *found, *[None] * (3 + len(masks))


def _tiles(states: Tensor, key_heads: int) -> Tensor:
    """(batch, heads, length, dim) to (blocks, batch * key heads, sharing * block, dim); 0 after the last row.

    Of a block, the heads that share a key are rows of one matrix.
    """
    block = block_of(states.shape[2])
    apart = _padded(states, block).unflatten(2, (-1, block)).unflatten(1, (key_heads, -1))
    return apart.permute(3, 0, 1, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def _together(tiles: Tensor, batch: int, length: int) -> Tensor:
    """What `_tiles` took apart, to (batch, length, heads, dim)."""
    apart = tiles.unflatten(2, (-1, block_of(length))).unflatten(1, (batch, -1))
    return apart.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, :length].contiguous()


def _wide(states: Tensor) -> Tensor:
    """(batch, key heads, length, dim) to (batch * key heads, length, dim), with 0 up to a multiple of `key_step`."""
    return _padded(states, key_step(states.shape[2])).flatten(0, 1).contiguous()


def _padded(states: Tensor, step: int) -> Tensor:
    """With rows of 0 up to a multiple of `step`; no copy where there are as many."""
    missing = -states.shape[2] % step
    return functional.pad(states, (0, 0, 0, missing)) if missing else states


def _keys_at(length: int, starts: list[int]) -> Iterator[slice]:
    """The keys that each block meets."""
    step, block = key_step(length), block_of(length)
    for number, start in enumerate(starts):
        yield slice(start, _up(min((number + 1) * block, length), step))


class _Scores:
    """Room for `matrices` of scores, the same for all blocks: what comes and goes would leave holes in the heap."""

    def __init__(self, tiles: Tensor, keys: Tensor, matrices: int):
        _, self._across, self._down, _ = tiles.shape
        self._room = [keys.new_empty(self._across * self._down * keys.shape[1]) for _ in range(matrices)]

    def of(self, keys: int) -> list[Tensor]:
        """(batch * key heads, sharing * block, keys) each."""
        count = self._across * self._down * keys
        return [each[:count].view(self._across, self._down, keys) for each in self._room]

    def weights(self, tile: Tensor, keys: Tensor, unseen: Tensor, scale: float) -> Tensor:
        """softmax(scale Q K' + mask), in the second of the room."""
        scores, weights, *_ = self.of(keys.shape[1])
        torch.baddbmm(scores, tile, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
        batch, *_, block, last = unseen.shape
        scores.view(batch, -1, self._down // block, block, keys.shape[1])[..., -last:].add_(unseen)
        return torch.softmax(scores, dim=-1, out=weights)
