"""Attention within sequences by their lengths: that of float64 by its formula, with gradients, of both functions.

torch's variable-length kernel has no code for a CPU: here `aten::_flash_attention_forward` and its backward are given
the formula, sequence by sequence, so that what the project hands to them and what it makes of the results is seen.
"""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import AutoModelForCausalLM

from factory.attention import PER_DOCUMENT, SEGMENTED, VARLEN, segments
from factory.data.batches import FLASH, LENGTHS
from factory.steps import kernels

LAYER: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1)
SIZES = (7, 1, 12, 5, 7)  # of sequences, in two rows of 16 tokens


def shares(query: Tensor, key: Tensor, sizes: tuple[int, ...], scale: float, window: int) -> Tensor:
    """softmax(scale Q K'): (heads, tokens, tokens), for (heads, tokens, dim) each."""
    number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    places = torch.arange(len(number))
    behind = places[:, None] - places
    sees = (number[:, None] == number) & (behind >= 0) & (behind < window)
    return torch.softmax((scale * query @ key.mT).masked_fill(~sees, -torch.inf), dim=-1)


def formula(query: Tensor, key: Tensor, value: Tensor, sizes: tuple[int, ...], scale: float, window: int) -> Tensor:
    """softmax(scale Q K') V in whole matrices: (heads, tokens, dim) each, keys for as many heads or fewer."""
    key, value = (each.repeat_interleave(len(query) // len(key), 0) for each in (key, value))
    return shares(query, key, sizes, scale, window) @ value


def _as_given(bounds: Tensor, query: Tensor, named: dict[str, Any]) -> tuple[tuple[int, ...], float, int]:
    """What the kernel is told, as the formula takes it: sizes, scale, window."""
    left, scale = named["window_size_left"], named.get("scale", query.shape[-1] ** -0.5)
    return tuple(bounds.diff().tolist()), scale, int(bounds[-1]) if left < 0 else left + 1


def _forward(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *others: Any, **named: Any) -> Any:
    of_keys, longest, _, dropout, causal = others[0], *others[1:5]
    assert torch.equal(bounds, of_keys) and bounds.dtype == torch.int32
    assert longest == int(bounds.diff().max()) and not dropout
    assert causal == (named["window_size_left"] < 0) and named["window_size_right"] == 0
    states = (each.transpose(0, 1) for each in (query, key, value))  # they come as (tokens, heads, dim)
    output = formula(*states, *_as_given(bounds, query, named)).transpose(0, 1)  # type: ignore[arg-type]
    sums = query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    nothing = torch.zeros(2, dtype=torch.uint64)
    return output, sums, nothing, nothing[:1], query.new_empty(0)


def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
    """The derivative of the formula by hand, as autograd is off within an operation."""
    grad, query, key, value = (each.transpose(0, 1) for each in (grad, query, key, value))
    group = len(query) // len(key)
    keys, values = (each.repeat_interleave(group, 0) for each in (key, value))
    sizes, scale, window = _as_given(others[2], query, named)
    share = shares(query, keys, sizes, scale, window)
    slope = grad @ values.mT
    slope = scale * share * (slope - (slope * share).sum(-1, keepdim=True))
    of_keys, of_values = (each.unflatten(0, (-1, group)).sum(1) for each in (slope.mT @ query, share.mT @ grad))
    return tuple(each.transpose(0, 1) for each in (slope @ keys, of_keys, of_values))


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    yield
    library._destroy()


def lengths(name: str) -> dict[str, Any]:
    """As a batch says them."""
    if name == PER_DOCUMENT:
        return {LENGTHS: SIZES}
    bounds = torch.tensor([0, *SIZES]).cumsum(0).int()
    return dict(zip(FLASH, (bounds, max(SIZES)) * 2, strict=True))


def attend(name: str, *states: Tensor, **options: Any) -> Tensor:
    function = segments.varlen if name == VARLEN else segments.per_document
    output, _ = function(LAYER, *states, None, **lengths(name), **options)  # type: ignore[arg-type,operator]
    return output


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("heads", "key_heads", "wide"), [(4, 4, 8), (6, 2, 8), (3, 1, 8), (4, 4, 5)])
@pytest.mark.parametrize("name", SEGMENTED)
def test_the_formula_and_its_gradients(
    name: str, heads: int, key_heads: int, wide: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values may be narrower than keys. In float64, so that only rounding differs."""
    monkeypatch.setattr(LAYER, "num_key_value_groups", heads // key_heads)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(heads), dtype=torch.float64)
    # laid out as a model has them: a token's heads side by side
    states = [
        draw(2, 16, count, dim).transpose(1, 2).requires_grad_()
        for count, dim in ((heads, 8), (key_heads, 8), (key_heads, wide))
    ]
    weight = draw(2, 16, heads, wide)
    found = attend(name, *states, scaling=0.3, sliding_window=window)
    query, key, value = (each.transpose(0, 1).flatten(1, 2) for each in states)
    wanted = formula(query, key, value, SIZES, 0.3, window or 32).transpose(0, 1).unflatten(0, (2, 16))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    slopes = torch.autograd.grad((wanted * weight).sum(), states)
    for one, other in zip(torch.autograd.grad((found * weight).sum(), states), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SEGMENTED)
def test_what_is_not_known_is_an_error(name: str) -> None:
    function: Any = segments.varlen if name == VARLEN else segments.per_document
    states = [torch.randn(2, 2, 16, 8) for _ in range(3)]
    with pytest.raises(AssertionError, match="no lengths"):
        function(LAYER, *states, None)
    with pytest.raises(AssertionError, match="no mask"):
        function(LAYER, *states, torch.ones(2, 1, 16, 16), **lengths(name))
    with pytest.raises(AssertionError, match="softcap"):
        function(LAYER, *states, None, softcap=30.0, **lengths(name))


def test_under_autocast_the_kernel_is_given_16_bits() -> None:
    """And keys of fewer heads as they are; what it takes is torch's own check on a GPU."""
    query, key = (torch.randn(2, heads, 16, 64, requires_grad=True) for heads in (6, 2))
    with torch.autocast("cpu", torch.bfloat16):
        output = attend(VARLEN, query, key, key)
    assert (output.dtype, output.shape) == (torch.bfloat16, (2, 16, 6, 64))


def test_selective_recomputation_keeps_the_output() -> None:
    states = [torch.randn(2, 2, 16, 8, requires_grad=True) for _ in range(3)]
    segments.register(VARLEN)
    kept, seen = kernels._dear(torch.nn.Module()), list[Any]()
    assert torch.ops.torch_attn._varlen_attn.default in kept

    def policy(_: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        seen.append(operation)
        return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    calls = list[None]()

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return attend(VARLEN, *given)

    checkpoint(counted, *states, use_reentrant=False, context_fn=contexts).sum().backward()
    assert len(calls) == 2  # made again, but for the kernel's output
    assert torch.ops.torch_attn._varlen_attn.default in seen


@pytest.mark.parametrize("name", SEGMENTED)
def test_what_is_written_has_masks(name: str) -> None:
    """Padded prompts and a cache: the answers are those of torch's own kernel, and the model is as it was."""
    segments.register(name)
    ids = torch.randint(3, 512, (2, 13), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "eos_token_id": None}
    given = list[Tensor]()
    for attention in ("sdpa", name):
        torch.manual_seed(0)
        config = tiny.config(model_type="llama")
        config._attn_implementation = attention
        model = AutoModelForCausalLM.from_config(config).eval()
        with segments.with_masks(model):
            given.append(model.generate(input_ids=ids, attention_mask=padded, **settings))
        assert model.config._attn_implementation == attention
    assert torch.equal(*given)
