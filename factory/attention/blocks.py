"""Exact attention by blocks of queries, for a CPU: products of matrices, which it is fast at, in place of one kernel.

A block of queries meets the keys from the first that one of them sees to its own last: half of a causal matrix is never
made, and of packed documents only what lies within them. What is kept for the gradients is what goes in and what comes
out, as of torch's fused kernel (Dao et al. 2022, arXiv 2205.14135, section 3.1); the scores are made again.

Scores are held in the type of the queries, so in bfloat16 they are rounded as in transformers' own way (`eager`).
Measured beside torch's kernel in docs/measurements.md.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.attention import BLOCK, BLOCKS, key_step
from factory.attention.mask import FOREIGN, Mask, mask, spans, whole


def register() -> None:
    """Makes `blocks` a name for `attn_implementation`, in this process."""
    AttentionInterface.register(BLOCKS, attend)
    AttentionMaskInterface.register(BLOCKS, mask)


_softmax_slopes = torch.ops.aten._softmax_backward_data.out


class Seen(NamedTuple):
    """Of each block of BLOCK queries: its first key, and what is added to the scores of its last keys.

    A mask is (batch or 1, 1, 1, BLOCK, keys): 0 where a key is seen, else the lowest number, so that a query that sees
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
    if attention_mask is None:
        seen = _causal(length, query.dtype, query.device)
    else:
        seen = _of(attention_mask, length, query.dtype)
    return torch.ops.factory.attend_blocks(query, key, value, seen.masks, seen.starts, scale), None


@lru_cache(maxsize=8)  # all layers keep the same
def _causal(length: int, dtype: torch.dtype, device: torch.device) -> Seen:
    step = key_step(length)
    places, starts = torch.arange(step, device=device), range(0, length, BLOCK)
    inside = {start % step for start in starts}
    later = {start: _added((places[start : start + BLOCK, None] >= places)[None], dtype) for start in inside}
    return Seen([0] * len(starts), [later[start % step] for start in starts])


def _of(mask: Mask, length: int, dtype: torch.dtype) -> Seen:
    return mask.once((BLOCKS, dtype), partial(_made, mask, length, dtype))  # type: ignore[no-any-return]


def _made(mask: Mask, length: int, dtype: torch.dtype) -> Seen:
    found, step = Seen([], []), key_step(length)
    tokens = torch.arange(length, device=mask.device)
    for start in range(0, length, BLOCK):
        queries = tokens[start : start + BLOCK]
        seen = mask.seen(queries[:, None], tokens[None, : start + len(queries)])
        first = int(seen.flatten(0, 1).any(0).to(torch.uint8).argmax()) // step * step
        wide = _up(start + len(queries), step)
        unseen = (0, wide - seen.shape[-1], 0, BLOCK - len(queries))
        found.starts.append(first)
        found.masks.append(_added(functional.pad(seen, unseen)[..., first:], dtype))
    return found


def _up(length: int, step: int) -> int:
    return -(-length // step) * step


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, queries, keys) to what is added to scores."""
    least = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, least)[:, None, None]


# --- one operation: what recomputes activations selectively sees it whole, and keeps none of the scores


@torch.library.custom_op("factory::attend_blocks", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float) -> Tensor:
    """(batch, heads, length, dim), keys and values of as many heads or fewer, to (batch, length, heads, dim)."""
    output = _output(query, key, value, masks, starts, scale)
    queries, out = _grouped(query, key), _grouped(output.transpose(1, 2), key)
    for block in _blocks(queries, _wide(key), _wide(value), masks, starts, 2):
        out[:, :, :, block.rows] = block.apart(block.weights(scale) @ block.values)
    return output


@_attend.register_fake
def _output(query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1])


@torch.library.custom_op("factory::attend_blocks_backward", mutates_args=())
def _slopes(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], scale: float
) -> list[Tensor]:
    """Gradients of queries, keys and values. With P the weights and S the scores: dV = P'dO, dS = P (dP - sum P dP)."""
    length, by_query = query.shape[2], torch.empty_like(query)
    queries, out, into = (_grouped(each, key) for each in (query, grad.transpose(1, 2), by_query))
    key, value = _wide(key), _wide(value)
    by_key, by_value = torch.zeros_like(key), torch.zeros_like(value)
    for block in _blocks(queries, key, value, masks, starts, 3):
        weights, slope = block.weights(scale), block.together(out)
        by_value[:, :, block.keys_at] += block.heads(weights.transpose(1, 2) @ slope)
        by_weight = torch.bmm(slope, block.values.transpose(1, 2), out=block.room[0])
        by_score = _softmax_slopes(by_weight, weights, -1, weights.dtype, grad_input=block.room[2])
        by_score *= scale
        into[:, :, :, block.rows] = block.apart(by_score @ block.keys)
        by_key[:, :, block.keys_at] += block.heads(by_score.transpose(1, 2) @ block.queries)
    return [by_query, by_key[:, :, :length].contiguous(), by_value[:, :, :length].contiguous()]


@_slopes.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> list[Tensor]:
    return [torch.empty_like(each) for each in (query, key, value)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, masks, ctx.starts, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *masks)


def _go_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, key, value, *masks = ctx.saved_tensors
    found = _slopes(grad, query, key, value, masks, ctx.starts, ctx.scale)
    return *found, [None] * len(masks), None, None


_attend.register_autograd(_go_back, setup_context=_keep)


def _grouped(states: Tensor, key: Tensor) -> Tensor:
    """(batch, heads, length, dim) to (batch, key heads, queries' heads that share one, length, dim): a view."""
    return states.unflatten(1, (key.shape[1], -1))


class _Block(NamedTuple):
    """Queries, keys and values are (batch * key heads, rows, dim): heads that share a key are rows of one matrix."""

    rows: slice  # of the queries there are
    keys_at: slice
    shape: tuple[int, ...]  # (batch, key heads, queries' heads that share one, BLOCK)
    queries: Tensor
    keys: Tensor
    values: Tensor
    unseen: Tensor
    room: list[Tensor]  # for as many matrices of scores, the same for all blocks: what comes and goes leaves no holes

    def weights(self, scale: float) -> Tensor:
        """softmax(scale Q K' + mask): (batch * key heads, rows, keys), in the second of the room."""
        scores, weights, *_ = self.room
        torch.baddbmm(scores, self.queries, self.keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
        apart = scores.view(*self.shape, -1)
        apart[..., -self.unseen.shape[-1] :] += self.unseen
        return torch.softmax(scores, dim=-1, out=weights)

    def apart(self, states: Tensor) -> Tensor:
        return states.view(*self.shape, -1)[:, :, :, : self.rows.stop - self.rows.start]

    def together(self, states: Tensor) -> Tensor:
        """The block's rows of what is grouped, all that share a key in one matrix."""
        return _rows(states, self.rows)

    def heads(self, states: Tensor) -> Tensor:
        return states.view(*self.shape[:2], *states.shape[1:])


def _rows(states: Tensor, rows: slice) -> Tensor:
    """Of grouped states, to (batch * key heads, sharing * BLOCK, dim); 0 after the last row."""
    own = functional.pad(states[:, :, :, rows], (0, 0, 0, BLOCK - (rows.stop - rows.start)))
    return own.flatten(2, 3).flatten(0, 1)


def _blocks(
    queries: Tensor, key: Tensor, value: Tensor, masks: list[Tensor], starts: list[int], matrices: int
) -> Iterator[_Block]:
    """`key` and `value` as `_wide` makes them; with room for so many matrices of scores."""
    length, step = queries.shape[3], key_step(queries.shape[3])
    across, down = queries.shape[0] * queries.shape[1], queries.shape[2] * BLOCK
    room = [queries.new_empty(across * down * key.shape[2]) for _ in range(matrices)]
    for number, (first, unseen) in enumerate(zip(starts, masks, strict=True)):
        rows = slice(number * BLOCK, min((number + 1) * BLOCK, length))
        keys_at = slice(first, _up(rows.stop, step))
        keys, values = (each[:, :, keys_at].flatten(0, 1) for each in (key, value))
        shape = (across, down, keys.shape[1])
        own = [each[: prod(shape)].view(shape) for each in room]
        yield _Block(rows, keys_at, (*queries.shape[:3], BLOCK), _rows(queries, rows), keys, values, unseen, own)


def _wide(states: Tensor) -> Tensor:
    """With rows of 0 up to a multiple of `key_step`."""
    length = states.shape[2]
    return functional.pad(states, (0, 0, 0, _up(length, key_step(length)) - length)).contiguous()
