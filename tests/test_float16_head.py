"""A head in float16: as near to float64 as its numbers allow, and no gradient vanishes or overflows before its time."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from factory import chunks
from factory.losses import LinearCrossEntropy, LinearLogProbs

TOKENS, WIDTH, WORDS = 20, 8, 4096
Values = tuple[Any, ...]


def problem(*, trains_head: bool, spread: float = 0.1) -> Values:
    """Numbers that float16 holds, so that float64 computes with the same."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH).half().requires_grad_()
    weight = (spread * torch.randn(WORDS, WIDTH)).half().float().requires_grad_(trains_head)
    return hidden, weight, torch.randint(0, WORDS, (TOKENS,))


def exact(hidden: Any, weight: Any, target: Any, factors: Any) -> tuple[torch.Tensor, Values]:
    """Losses of the tokens, and the gradients of their sum times the factors, in float64."""
    wide = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    values = functional.cross_entropy(wide[0] @ wide[1].T, target, reduction="none")
    return values, torch.autograd.grad((values * factors).sum(), wide)


def near(mine: torch.Tensor, theirs: torch.Tensor, scale: float = 1.0) -> None:
    """Equal to what float16 rounds, against the largest of the gradient's numbers."""
    assert mine.isfinite().all()
    off = (mine.double() / scale - theirs).abs().amax() / theirs.abs().amax()
    assert off < 4e-3, off


@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("loss_scale", [1.0, 2.0**16])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_scaled_loss_has_the_gradients_of_float64(
    trains_head: bool, loss_scale: float, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    hidden, weight, target = problem(trains_head=trains_head)
    counts = torch.linspace(0.1, 300, TOKENS) if weighted else None
    values, theirs = exact(hidden, weight, target, torch.ones(TOKENS) if counts is None else counts)
    loss = LinearCrossEntropy.apply(hidden, weight, target, torch.float16, None, 1.0, None, counts)
    expected = (values if counts is None else values * counts).sum()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-3)
    wanted = [hidden, weight] if trains_head else [hidden]
    units = loss_scale / 2**12  # as if divided by the units of a large batch
    found = torch.autograd.grad(loss * units, wanted)
    assert [each.dtype for each in found] == [each.dtype for each in wanted]
    for mine, exactly in zip(found, theirs, strict=False):
        near(mine, exactly, units)


@pytest.mark.parametrize("trains_head", [True, False])
def test_a_tokens_own_gradient_may_be_large(trains_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of whole answers multiply a token's slope by the scale, which float16 need not hold."""
    monkeypatch.setattr(chunks, "CHUNK", 8)
    hidden, weight, target = problem(trains_head=trains_head)
    factors = torch.linspace(1, 2**15, TOKENS)
    values, theirs = exact(hidden, weight, target, -factors)
    found = LinearLogProbs.apply(hidden, weight, target, torch.float16)
    torch.testing.assert_close(-found.double(), values, rtol=1e-3, atol=1e-3)
    wanted = [hidden, weight] if trains_head else [hidden]
    for mine, exactly in zip(torch.autograd.grad((found * factors).sum(), wanted), theirs, strict=False):
        near(mine, exactly)


def test_words_of_small_probability_have_gradients() -> None:
    """Probabilities around 1e-8 are 0 in float16: unscaled slopes of such words would be lost for good."""
    hidden, weight, _ = problem(trains_head=True)
    with torch.no_grad():
        weight[0] = 3 * torch.ones(WIDTH)
        hidden.copy_(0.75 * torch.ones(TOKENS, WIDTH))
    target = torch.zeros(TOKENS, dtype=torch.long)
    _, (_, theirs) = exact(hidden, weight, target, torch.ones(TOKENS))
    assert 0 < theirs[1:].abs().amax() < 6e-8 * TOKENS  # of a token each is below float16's least number
    loss = LinearCrossEntropy.apply(hidden, weight, target, torch.float16)
    (mine,) = torch.autograd.grad(loss, [weight])
    there = mine[1:].abs().amax(1) > 0
    assert there.float().mean() > 0.99
    torch.testing.assert_close(mine[1:].double().sum(0), theirs[1:].sum(0), rtol=0.02, atol=0)


def test_what_overflows_is_infinite_for_the_scaler() -> None:
    """A loss scale that is too large is seen in the gradients, and the next that is smaller is right."""
    hidden, weight, target = problem(trains_head=False, spread=2.0)
    _, (theirs, _) = exact(hidden, weight, target, torch.ones(TOKENS))
    loss = LinearCrossEntropy.apply(hidden, weight, target, torch.float16)
    (large,) = torch.autograd.grad(loss * 2.0**20, [hidden], retain_graph=False)
    assert not large.isfinite().all()
    loss = LinearCrossEntropy.apply(hidden, weight, target, torch.float16)
    (mine,) = torch.autograd.grad(loss * 2.0**8, [hidden])
    near(mine, theirs, 2.0**8)
