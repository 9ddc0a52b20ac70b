"""S², shifted sparse attention: LongLoRA (Chen et al. 2023, arXiv 2309.12307), section 3.2, in its causal form.

While training, half of the heads attend within groups of G tokens, the other half within groups that are shifted by
G/2, so that what a layer learns flows between neighbouring groups. The cost per token does not grow with the length.

- Query heads [0, H // 2) see the groups that start at 0, G, 2G …, the rest those that start at 0, G/2, 3G/2 …: of an
  odd number of heads the shifted half has one more, as in the paper's code. Every query head reads the key and value
  head that it reads in full attention, so trained weights mean the same in both.
- The paper rolls the shifted half by -G/2, which puts the sequence's end and its start into one group. A causal model
  must not look across that seam: here the first G/2 tokens are a group of their own, and so is what is left at the end.
- A length that G does not divide leaves a shorter last group: nothing is padded. A sequence no longer than G is one
  group, in all heads: full attention.
- Outside training (`module.training` is false), and where a cache is used, attention is full, as in the paper.
- Documents that `position_ids` isolate stay isolated within the groups. No square of the length is made.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa

from factory.attention import S2
from factory.attention.mask import FOREIGN, Mask, added, mask, whole


def register(group_size: int) -> None:
    """Makes `s2` a name for `attn_implementation`, in this process, with groups of `group_size` tokens."""
    assert group_size >= 2, group_size
    assert group_size % 2 == 0, group_size
    AttentionInterface.register(S2, partial(attend, group_size=group_size))
    AttentionMaskInterface.register(S2, mask)


class Block(NamedTuple):
    """Groups of `size` tokens in a row, from token `start` on."""

    start: int
    groups: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.groups * self.size


def blocks(length: int, group_size: int, shift: int) -> list[Block]:
    """The groups of `length` tokens: one of `shift` tokens, as many whole ones as there are, and the rest."""
    whole, rest = divmod(length - shift, group_size)
    found = [Block(0, 1, shift), Block(shift, whole, group_size), Block(length - rest, 1, rest)]
    return [block for block in found if block.groups * block.size]


def within(mask: Mask, block: Block, dtype: torch.dtype) -> torch.Tensor:
    """(batch * groups, 1, size, size), 0 where seen and -inf elsewhere."""

    def made() -> torch.Tensor:
        tokens = torch.arange(block.start, block.stop, device=mask.device).view(block.groups, block.size)
        seen = mask.seen(tokens.unsqueeze(-1), tokens.unsqueeze(-2))
        return added(seen, dtype).flatten(0, 1).unsqueeze(1)

    return mask.once((block, dtype), made)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask | torch.Tensor | None,
    *,
    group_size: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    use_cache: bool | None = False,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """In transformers' attention interface: (batch, heads, length, dim) to (batch, length, heads, dim)."""
    heads, length = query.shape[1:3]
    if not module.training or use_cache or length <= group_size:
        return sdpa_attention_forward(module, query, key, value, whole(attention_mask), dropout, scaling, **others)
    foreign = [name for name in FOREIGN if others.get(name) is not None]
    assert not foreign, f"S² attention knows no {foreign}"
    assert module.is_causal, "S² attention is causal"
    assert heads > 1, "S² attention needs two heads, one for each pattern"
    assert key.shape[2] == length, "S² attention trains without keys from before"
    assert not isinstance(attention_mask, torch.Tensor), "S² attention takes no ready-made mask"

    half, sharing = heads // 2, heads // key.shape[1]
    if half % sharing or attention_mask is not None or not use_gqa_in_sdpa(None, key, value):
        key, value = repeat_kv(key, sharing), repeat_kv(value, sharing)
    key_half = half * key.shape[1] // heads
    halves = (
        ((query[:, :half], key[:, :key_half], value[:, :key_half]), blocks(length, group_size, 0)),
        ((query[:, half:], key[:, key_half:], value[:, key_half:]), blocks(length, group_size, group_size // 2)),
    )
    outputs = [
        torch.cat([_within(states, block, attention_mask, dropout, scaling) for block in groups], dim=1)
        for states, groups in halves
    ]
    return torch.cat(outputs, dim=2), None


def _within(
    states: tuple[torch.Tensor, ...], block: Block, mask: Mask | None, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Causal attention within each group of a block: (batch, heads, length, dim) to (batch, groups * size, heads, dim).

    The groups are moved into the batch, so that one call of the kernel does them all.
    """
    query, key, value = (
        each[:, :, block.start : block.stop].unflatten(2, (block.groups, block.size)).transpose(1, 2).flatten(0, 1)
        for each in states
    )
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=within(mask, block, query.dtype) if mask else None,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).unflatten(0, (-1, block.groups)).flatten(1, 2)
