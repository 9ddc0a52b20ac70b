"""Attention in C: that of float64 by its formula, of what masks let see in stretches, with gradients, by threads."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from attention.test_blocks import LAYER, SIGHTS, causal, formula, given
from torch import Tensor

from factory import products
from factory.attention import BLOCK, blocks, mask, native
from factory.estimate.attention import rooms
from factory.native import build, kernels

TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(autouse=True, params=TYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if build.compiler() is None or not build.attends(request.param):
        pytest.skip(f"there is no C compiler, or this CPU has none of its instructions for {request.param}")
    kernels.use(True)
    return TYPES[request.param]


@pytest.fixture(params=[1, 2, 40])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The last are more than there are blocks."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def shared(length: int) -> Tensor:
    """Of prompts of 9 tokens with two answers, the second of which sees nothing of the first: (2, 1, 3, length)."""
    places = torch.arange(length)
    second = 9 + (length - 9) // 2
    own = torch.where(places >= second, second, 0)
    rows = torch.stack([own, torch.zeros_like(own), torch.where(places >= second, 9, 0)])
    return torch.stack([rows, torch.zeros_like(rows)])[:, None]


def drawn(length: int, shapes: Any, dtype: torch.dtype, *, rows: int = 2) -> list[Tensor]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(length))
    # laid out as a model has them: a token's heads side by side
    return [draw(rows, length, heads, width).to(dtype).transpose(1, 2).requires_grad_() for heads, width in shapes]


def near(found: Tensor, exact: Tensor) -> None:
    off = float((found.double() - exact).norm())
    assert off <= {torch.bfloat16: 5e-3, torch.float32: 1e-6}[found.dtype] * float(exact.norm()) + 1e-30


def check(states: list[Tensor], told: mask.Mask | None, sees: Tensor) -> Tensor:
    """What is made and its gradients, beside float64; gives what is made."""
    query, _, value = states
    weight = torch.randn(*query.transpose(1, 2).shape[:-1], value.shape[-1]).to(query.dtype)
    leaves = [each.detach().double().requires_grad_() for each in states]
    scale = query.shape[-1] ** -0.5
    wanted = formula(*leaves, sees, scale)
    slopes = torch.autograd.grad((wanted * weight).sum(), leaves)
    found, _ = blocks.attend(LAYER, *states, told, scaling=scale, in_c=True)
    assert type(found.grad_fn).__name__ == "NativeBackward" and found.is_contiguous()
    near(found, wanted)
    for one, other in zip(torch.autograd.grad(found, states, weight), slopes, strict=True):
        near(one, other)
    return found


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("length", [7, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize(("heads", "key_heads", "dim", "wide"), [(4, 4, 16, 16), (6, 2, 64, 64), (3, 1, 80, 144)])
def test_the_formula_and_its_gradients(
    sight: str, length: int, heads: int, key_heads: int, dim: int, wide: int, dtype: torch.dtype, threads: int
) -> None:
    """Values may be of another width than keys."""
    states = drawn(length, ((heads, dim), (key_heads, dim), (key_heads, wide)), dtype)
    sees = SIGHTS[sight](length)
    check(states, given(sees), sees)
    if sight == "causal":
        check(states, None, sees)


def test_a_single_token(dtype: torch.dtype) -> None:
    """It sees itself alone: what is made is its value, and nothing depends on the query."""
    query, key, value = drawn(1, ((2, 16),) * 3, dtype)
    found, _ = blocks.attend(LAYER, query, key, value, None, in_c=True)
    assert torch.equal(found, value.transpose(1, 2))
    by_query, by_key, by_value = torch.autograd.grad(found.sum(), (query, key, value))
    assert torch.equal(by_value, torch.ones_like(by_value))
    assert float(by_query.abs().max()) < 1e-6 and float(by_key.abs().max()) < 1e-6


@pytest.mark.parametrize("length", [29, 200])
def test_answers_that_share_a_prompt(length: int, dtype: torch.dtype, threads: int) -> None:
    told = mask.spans(shared(length))
    assert told is not None
    places = torch.arange(length)
    check(drawn(length, ((4, 32), (2, 32), (2, 32)), dtype), told, told.seen(places[:, None], places[None]))


def test_what_no_stretches_say_goes_by_blocks(dtype: torch.dtype) -> None:
    sees = causal(100)
    sees[1, 50:, 20] = False
    states = drawn(100, ((2, 16),) * 3, dtype)
    found, _ = blocks.attend(LAYER, *states, given(sees), in_c=True)
    assert type(found.grad_fn).__name__ == "_AttendBackward"
    by_blocks, _ = blocks.attend(LAYER, *states, given(sees))
    assert torch.equal(found, by_blocks)


def test_heads_of_another_width_go_by_blocks(dtype: torch.dtype) -> None:
    for width in (8, 272):
        found, _ = blocks.attend(LAYER, *drawn(9, ((2, width),) * 3, dtype), None, in_c=True)
        assert type(found.grad_fn).__name__ == "_AttendBackward"


@pytest.mark.parametrize("length", [9, 3 * BLOCK + 9])
def test_padding_that_sees_nothing_is_no_nan(length: int, dtype: torch.dtype) -> None:
    sees = causal(length)
    sees[0, :, :3] = False  # on the left: its own rows see nothing
    states = drawn(length, ((2, 16),) * 3, dtype)
    found, _ = blocks.attend(LAYER, *states, given(sees), scaling=0.3, in_c=True)
    near(found[0, 3:], formula(*(each.detach().double() for each in states), sees, 0.3)[0, 3:])
    found[0, 3:].sum().backward()
    assert found.isfinite().all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in states)


def test_a_number_that_is_none_is_seen_where_it_is_read(dtype: torch.dtype) -> None:
    query, key, value = (each.detach() for each in drawn(100, ((2, 16),) * 3, dtype))
    key[0, 1, 70] = torch.nan
    found, _ = blocks.attend(LAYER, query, key, value, None, in_c=True)
    lost = found.isnan().any(-1)
    assert lost[0, 70:, 1].all() and int(lost.sum()) == 30


def test_states_as_slices_of_one_product(dtype: torch.dtype) -> None:
    """As of a layer with one product for queries, keys and values."""
    whole = torch.randn(2, 70, 8 * 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    states = [each.unflatten(-1, (-1, 32)).transpose(1, 2) for each in whole.split([128, 64, 64], -1)]
    apart = [each.detach().clone().requires_grad_() for each in states]
    one, other = (blocks.attend(LAYER, *each, None, in_c=True)[0] for each in (states, apart))
    assert torch.equal(one, other)
    (gradient,) = torch.autograd.grad(one.sum(), whole)
    parts = torch.autograd.grad(other.sum(), apart)
    assert torch.equal(gradient, torch.cat([each.transpose(1, 2).flatten(2) for each in parts], -1))


def test_it_is_always_the_same(dtype: torch.dtype) -> None:
    """What is made on any number of threads, gradients on as many."""
    states, made, before = drawn(300, ((6, 64), (2, 64), (2, 64)), dtype), list[Any](), torch.get_num_threads()
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found, _ = blocks.attend(LAYER, *states, None, in_c=True)
        made.append((found, *torch.autograd.grad(found.sum(), states)))
    torch.set_num_threads(before)
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    assert all(torch.equal(one, other) for one, other in zip(made[1], made[2], strict=True))
    for one, other in zip(made[0][2:], made[1][2:], strict=True):
        near(one, other.double())


def test_what_is_kept(dtype: torch.dtype) -> None:
    """What goes in, what comes out, and a number for each query."""
    states, kept = drawn(4 * BLOCK, ((2, 16),) * 3, dtype), list[int]()

    def pack(value: Tensor) -> Tensor:
        kept.append(value.untyped_storage().nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        blocks.attend(LAYER, *states, None, in_c=True)
    whole = 2 * 2 * 4 * BLOCK
    assert sorted(kept) == sorted([*[whole * 16 * dtype.itemsize] * 4, whole * 4])


@pytest.mark.parametrize(("length", "dim", "wide"), [(1, 16, 16), (130, 64, 64), (511, 80, 144), (2048, 256, 128)])
def test_its_room_is_as_the_estimate_has_it(length: int, dim: int, wide: int, dtype: torch.dtype, threads: int) -> None:
    states = [torch.empty(1, 2, length, width, dtype=dtype) for width in (dim, dim, wide)]
    problem, library = kernels._problem(*states, None, 1.0), kernels._libraries[dtype]
    counted = rooms(min(threads, -(-length // BLOCK)), length, dim, wide, dtype.itemsize)
    assert counted == (library.attend_room(problem), library.attend_back_room(problem))


def test_wide_products_are_more_exact() -> None:
    """What is rounded is what goes in and what comes out. Narrow ones go by blocks where C has none of them."""
    states, off = drawn(200, ((6, 32), (2, 32), (2, 32)), torch.bfloat16), list[float]()
    exact = formula(*(each.detach().double() for each in states), causal(200), 0.3)
    for wide in (False, True):
        products.use(wide)
        found, _ = blocks.attend(LAYER, *states, None, scaling=0.3, in_c=True)
        assert found.dtype == torch.bfloat16
        assert (type(found.grad_fn).__name__ == "NativeBackward") is (wide or build.attends("bfloat16"))
        off.append(float((found - exact).norm() / exact.norm()))
        assert all(each.dtype == torch.bfloat16 for each in torch.autograd.grad(found.sum(), states))
    assert off[1] < off[0] and off[1] < 0.002


def test_without_the_kernels_it_goes_by_blocks(dtype: torch.dtype) -> None:
    kernels.use(False)
    states = drawn(70, ((2, 16),) * 3, dtype)
    assert native.attended(*states, None, 1.0) is None
    found, _ = blocks.attend(LAYER, *states, None, in_c=True)
    assert type(found.grad_fn).__name__ == "_AttendBackward"


@pytest.mark.parametrize("dtype", ["bfloat16"], indirect=True)
def test_two_tokens_are_as_exact_as_by_blocks(dtype: torch.dtype) -> None:
    """Their gradients are differences of nearly the same: of all lengths, rounding shows most here."""
    off = list[float]()
    for in_c in (True, False):
        states = drawn(2, ((200, 16),) * 3, dtype)
        leaves = [each.detach().double().requires_grad_() for each in states]
        slopes = torch.autograd.grad(formula(*leaves, causal(2), 0.25).sum(), leaves)
        found, _ = blocks.attend(LAYER, *states, None, in_c=in_c)
        pairs = zip(torch.autograd.grad(found.sum(), states), slopes, strict=True)
        off.append(sum(float((one - other).norm() / other.norm()) for one, other in pairs))
    assert off[0] < off[1]
