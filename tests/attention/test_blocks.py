"""Attention by blocks: that of float64 by its formula, of any mask, with gradients; nothing of it is kept."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import AutoModelForCausalLM

from factory.attention import BLOCK, blocks, flash, mask

Sees = Any  # (batch, queries, keys) of truth values
LAYER: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1)


def formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: Sees, scale: float) -> torch.Tensor:
    """softmax(scale Q K') V over what is seen, in whole matrices: (batch, length, heads, dim)."""
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = (scale * query @ key.transpose(-1, -2)).masked_fill(~sees[:, None], -torch.inf)
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)


def given(sees: Sees) -> mask.Mask:
    """As transformers hands a mask on: a function of indices."""
    function = lambda row, head, query, key: sees[row, query, key]  # noqa: E731
    batch, length = sees.shape[:2]
    return mask.Told(
        {
            "batch_size": batch,
            "q_length": length,
            "kv_length": length,
            "device": "cpu",
            "use_vmap": False,
            "mask_function": function,
            "attention_mask": None,
        }
    )


def causal(length: int) -> torch.Tensor:
    return torch.ones(2, length, length, dtype=torch.bool).tril()


def documents(length: int) -> torch.Tensor:
    """Of other lengths in each row, some longer than a block."""
    cut = torch.zeros(2, length, dtype=torch.long)
    for row, places in enumerate(((5, 6, BLOCK, 2 * BLOCK + 30), (BLOCK // 2, BLOCK + 1))):
        cut[row, [place for place in places if place < length]] = 1
    number = cut.cumsum(1)
    return causal(length) & (number[:, :, None] == number[:, None, :])


def window(length: int) -> torch.Tensor:
    places = torch.arange(length)
    return causal(length) & (places[:, None] - places < 20)


SIGHTS = {"causal": causal, "documents": documents, "window": window}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("length", [1, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5, 5 * BLOCK])
@pytest.mark.parametrize(("heads", "key_heads", "wide"), [(4, 4, 8), (6, 2, 8), (3, 1, 5)])
def test_the_formula_and_its_gradients(sight: str, length: int, heads: int, key_heads: int, wide: int) -> None:
    """Values may be of another width than keys. In float64, so that only rounding differs."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    shapes = ((heads, 8), (key_heads, 8), (key_heads, wide))
    # laid out as a model has them: a token's heads side by side
    states = [draw(2, length, count, dim).transpose(1, 2).requires_grad_() for count, dim in shapes]
    weight, sees = draw(2, length, heads, wide), SIGHTS[sight](length)
    wanted = formula(*states, sees, 0.3)
    slopes = torch.autograd.grad((wanted * weight).sum(), states)
    for told in (given(sees), *([None] if sight == "causal" else [])):
        found, _ = blocks.attend(LAYER, *states, told, scaling=0.3)
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        for one, other in zip(torch.autograd.grad((found * weight).sum(), states), slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("long", [1, 1_000_000], ids=["both ways", "forwards"])
@pytest.mark.parametrize("length", [1, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_torchs_kernel_and_its_gradients(
    length: int, heads: int, key_heads: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it stands in for blocks. In float64, which it takes too."""
    monkeypatch.setattr(flash, "wins", lambda query, value: True)
    monkeypatch.setattr(blocks, "LONG", long)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    states = [draw(2, length, count, 8).transpose(1, 2).requires_grad_() for count in (heads, key_heads, key_heads)]
    weight = draw(2, length, heads, 8)
    wanted = formula(*states, causal(length), 0.3)
    slopes = torch.autograd.grad((wanted * weight).sum(), states)
    found, _ = blocks.attend(LAYER, *states, None, scaling=0.3)
    assert type(found.grad_fn).__name__ == ("WholeBackward" if length >= long else "_AttendBackward")
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for one, other in zip(torch.autograd.grad((found * weight).sum(), states), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_torchs_kernel_where_tiles_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_has_tiles", lambda: True)
    narrow, wide = torch.empty(1, 1, 2, 8, dtype=torch.bfloat16), torch.empty(1, 1, 2, 9, dtype=torch.bfloat16)
    assert flash.wins(narrow, narrow)
    assert not flash.wins(narrow, wide) and not flash.wins(narrow.float(), narrow.float())
    monkeypatch.setattr(flash, "_has_tiles", lambda: False)
    assert not flash.wins(narrow, narrow)


@pytest.mark.parametrize("length", [100, 200])
def test_bfloat16_is_as_exact_as_transformers_own_way(length: int) -> None:
    """Against float64: what `eager` makes of the same numbers is no nearer."""
    ours, eager = _off(length, _ours), _off(length, _eager(length))
    assert max(ours) < 0.01
    assert all(one < 1.5 * other for one, other in zip(ours, eager, strict=True))


def _ours(*states: torch.Tensor) -> torch.Tensor:
    return blocks.attend(LAYER, *states, None)[0]


def _eager(length: int) -> Any:
    return partial(formula, sees=causal(length)[:1], scale=32**-0.5)


def _off(length: int, way: Any) -> list[float]:
    """How far in bfloat16 it is from float64: what it makes, and the gradients."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    states = [draw(1, count, length, 32).bfloat16() for count in (6, 2, 2)]
    weight = draw(1, length, 6, 32).bfloat16()

    def all_of(way: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in states]
        made = way(*leaves)
        return [made.detach(), *torch.autograd.grad(made, leaves, weight.to(dtype))]

    exact = all_of(_eager(length), torch.float64)
    narrow = all_of(way, torch.bfloat16)
    return [float((one - other).norm() / other.norm()) for one, other in zip(narrow, exact, strict=True)]


@pytest.mark.parametrize("length", [9, 3 * BLOCK + 9])
def test_what_sees_nothing_is_no_nan(length: int) -> None:
    sees = causal(length)
    sees[0, :, :3] = False  # padding on the left: its own rows see nothing
    states = [torch.randn(2, 2, length, 4, requires_grad=True) for _ in range(3)]
    found, _ = blocks.attend(LAYER, *states, given(sees))
    found[0, 3:].sum().backward()
    assert found.isfinite().all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in states)


@pytest.mark.parametrize("long", [None, 1, 1_000_000], ids=["blocks", "torch's", "torch's forwards"])
def test_scores_are_neither_kept_nor_made_whole(long: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept for the gradients are what goes in and small masks; selective recomputation keeps the output alone."""
    monkeypatch.setattr(flash, "wins", lambda query, value: long is not None)
    monkeypatch.setattr(blocks, "LONG", long or 0)
    length = 8 * BLOCK
    states = [torch.randn(1, 2, length, 4, requires_grad=True) for _ in range(3)]
    kept = list[int]()

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.untyped_storage().nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        blocks.attend(LAYER, *states, None)
    assert max(kept) < 2 * BLOCK * length * 4 / 2  # half of a block's scores

    seen = set[str]()
    ours = (torch.ops.factory.attend_blocks if long is None else torch.ops.factory.attend_whole).default

    def policy(_: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        seen.add(str(operation))
        return CheckpointPolicy.MUST_SAVE if operation is ours else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    attended = lambda *leaves: blocks.attend(LAYER, *leaves, None)[0]  # noqa: E731
    checkpoint(attended, *states, use_reentrant=False, context_fn=contexts).sum().backward()
    assert str(ours) in seen
    assert not any("bmm" in name or "softmax" in name or "flash" in name for name in seen)


def test_what_is_written_with_a_cache_is_the_same() -> None:
    blocks.register()
    ids = torch.randint(3, 512, (2, 13), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "eos_token_id": None}
    given = list[torch.Tensor]()
    for attention in ("sdpa", "blocks"):
        torch.manual_seed(0)
        config = tiny.config(model_type="llama")
        config._attn_implementation = attention
        made = AutoModelForCausalLM.from_config(config).eval()
        given.append(made.generate(input_ids=ids, attention_mask=padded, **settings))
    assert torch.equal(*given)
