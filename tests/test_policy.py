"""The arithmetic of PPO and GRPO: against the papers' formulas in float64 NumPy, by hand, and against TRL's GRPO."""

from collections import defaultdict
from math import exp, log, sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from factory.policy import (
    KL,
    adapted,
    clipped,
    gae,
    group_advantages,
    group_spread,
    grpo_loss,
    masked_mean,
    masked_sum,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

CLIP, BETA = 0.2, 0.04
SEEDS = range(5)
ROWS, LONGEST = 6, 7
JUNK = 1e6  # what stands where an answer has no token


class Rollout:
    """Answers of 1 to 7 tokens, as lists of numbers and as the padded tensors of the same."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.lengths = [LONGEST, *self.random.integers(1, LONGEST, size=ROWS - 1).tolist()]
        self.mask = torch.tensor([[at < length for at in range(LONGEST)] for length in self.lengths])

    def rows(self) -> list[np.ndarray]:
        return [self.random.normal(size=length) for length in self.lengths]

    def padded(self, rows: list[np.ndarray], junk: float = JUNK) -> Tensor:
        values = torch.full((len(rows), LONGEST), junk, dtype=torch.float64)
        for at, row in enumerate(rows):
            values[at, : len(row)] = torch.tensor(row)
        return values

    def same(self, found: Tensor, rows: list[Any]) -> None:
        """The tokens that are there have these values, and the others 0."""
        wanted = self.padded([np.array(row, dtype=float) for row in rows], junk=0.0)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# --- advantages ---


def _paper_gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> list[float]:
    """Equation 16: the sum over l of (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    length = len(rewards)

    def value(at: int) -> float:
        return values[at] if at < length else 0.0

    advantages = []
    for t in range(length):
        total = 0.0
        for ahead in range(length - t):
            delta = rewards[t + ahead] + gamma * value(t + ahead + 1) - value(t + ahead)
            total += (gamma * lam) ** ahead * delta
        advantages.append(total)
    return advantages


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_papers_formula(gamma: float, lam: float, seed: int) -> None:
    rollout = Rollout(seed)
    rewards, values = rollout.rows(), rollout.rows()
    advantages, returns = gae(rollout.padded(rewards), rollout.padded(values), rollout.mask, gamma, lam)
    wanted = [_paper_gae(*row, gamma, lam) for row in zip(rewards, values, strict=True)]
    rollout.same(advantages, wanted)
    rollout.same(returns, [np.array(a) + v for a, v in zip(wanted, values, strict=True)])


def test_gae_by_hand() -> None:
    # gamma 1/2, lambda 1/2. Deltas of the first: 1 + 1 - 1 = 1, 0 + 2 - 2 = 0, 2 + 0 - 4 = -2.
    # Advantages from the back: -2, 0 - 2/4 = -1/2, 1 - 1/8 = 7/8. The second ends after its first token: 3 - 1.
    rewards = torch.tensor([[1.0, 0.0, 2.0], [3.0, JUNK, JUNK]])
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, JUNK, JUNK]])
    kept = rewards.clone(), values.clone()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0.875, -0.5, -2.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.875, 1.5, 2.0], [3.0, 0.0, 0.0]]
    assert torch.equal(rewards, kept[0])
    assert torch.equal(values, kept[1])


def test_returns_with_lambda_1_are_the_rewards_to_come() -> None:
    """Whatever the values are: the estimate without bias, equation 18."""
    rollout = Rollout(0)
    rewards = rollout.rows()
    _, returns = gae(rollout.padded(rewards), rollout.padded(rollout.rows()), rollout.mask, 1.0, 1.0)
    rollout.same(returns, [row[::-1].cumsum()[::-1].copy() for row in rewards])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shift", [True, False])
def test_whiten(seed: int, shift: bool) -> None:
    rollout = Rollout(seed)
    rows = [3 + 5 * row for row in rollout.rows()]
    flat = np.concatenate(rows)
    kept = 0.0 if shift else flat.mean()
    wanted = [(row - flat.mean()) / np.sqrt(flat.var() + 1e-8) + kept for row in rows]
    rollout.same(whiten(rollout.padded(rows), rollout.mask, shift=shift), wanted)


def test_whiten_of_one_token_and_of_equal_ones() -> None:
    assert whiten(torch.tensor([[5.0, JUNK]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert whiten(torch.full((2, 2), 5.0), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_masked_sum_and_mean() -> None:
    values, mask = torch.tensor([[1.0, 2.0], [4.0, float("nan")]]), torch.tensor([[True, True], [True, False]])
    assert masked_sum(values, mask) == 7
    assert masked_mean(values, mask).item() == pytest.approx(7 / 3)
    assert masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)) == 0


# --- rewards and the KL ---


def _paper_kl(name: str, ours: float, theirs: float) -> float:
    ratio = exp(theirs) / exp(ours)
    return {"k1": -log(ratio), "k2": log(ratio) ** 2 / 2, "k3": (ratio - 1) - log(ratio)}[name]


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize("seed", SEEDS)
def test_kl_of_a_token(name: str, seed: int) -> None:
    ours, theirs = np.random.default_rng(seed).normal(size=(2, 5))
    wanted = [_paper_kl(name, a, b) for a, b in zip(ours, theirs, strict=True)]
    first = torch.tensor(ours, requires_grad=True)
    found = KL[name](first, torch.tensor(theirs))
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: KL[name](x, torch.tensor(theirs)), (first,))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_kl_has_no_bias(name: str) -> None:
    """Its mean over the tokens that pi may draw is the KL, to the last digit."""
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    exact = torch.nn.functional.kl_div(theirs, ours, log_target=True, reduction="sum")
    torch.testing.assert_close((ours.exp() * KL[name](ours, theirs)).sum(), exact)


def test_k3_keeps_its_digits_where_nothing_has_changed_yet() -> None:
    found = KL["k3"](torch.tensor([-1.0]), torch.tensor([-1.0 - 2.0**-13]))
    assert found.item() == pytest.approx(2.0**-27, rel=1e-3)
    assert found.item() >= 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("estimate", KL)
def test_rewards_of_tokens(seed: int, estimate: str) -> None:
    """The score on the last token, less beta KL at each."""
    rollout = Rollout(seed)
    ours, theirs = rollout.rows(), rollout.rows()
    scores = rollout.random.normal(size=ROWS)
    wanted = []
    for mine, other, score in zip(ours, theirs, scores, strict=True):
        row = [-0.3 * _paper_kl(estimate, a, b) for a, b in zip(mine, other, strict=True)]
        row[-1] += score
        wanted.append(row)
    both = rollout.padded(ours), rollout.padded(theirs, junk=-JUNK)
    rollout.same(token_rewards(*both, torch.tensor(scores), rollout.mask, 0.3, estimate), wanted)


def test_rewards_by_hand() -> None:
    # beta 1/2: -(-1 - -2) / 2 = -1/2 and -(-1 - -1) / 2 + 3 = 3
    found = token_rewards(
        torch.tensor([[-1.0, -1.0, JUNK]]),
        torch.tensor([[-2.0, -1.0, -JUNK]]),
        torch.tensor([3.0]),
        torch.tensor([[True, True, False]]),
        0.5,
    )
    assert found.tolist() == [[-0.5, 3.0, 0.0]]


@pytest.mark.parametrize(
    ("kl", "coefficient"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 0.1)),  # 10 % above, and 100 answers of a horizon of 1000
        (60.0, 0.1 * (1 + 0.1 * 0.2)),  # clipped
        (-60.0, 0.1 * (1 - 0.1 * 0.2)),
    ],
)
def test_adaptive_coefficient(kl: float, coefficient: float) -> None:
    assert adapted(0.1, kl, target=6.0, horizon=1000, samples=100) == pytest.approx(coefficient)


def test_adaptive_coefficient_stays_positive_and_finds_its_target() -> None:
    assert adapted(0.1, 0.0, target=6.0, horizon=1, samples=10**6) == pytest.approx(0.08)
    coefficient = 1.0
    for _ in range(500):  # a policy whose KL is 1 / coefficient: 5 at 0.2
        coefficient = adapted(coefficient, 1 / coefficient, target=5.0, horizon=1000, samples=100)
    assert coefficient == pytest.approx(0.2, rel=1e-2)


# --- losses ---


def _paper_policy(ours: float, old: float, advantage: float) -> float:
    """Equation 7, which is to be raised."""
    ratio = exp(ours) / exp(old)
    return min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * advantage)


@pytest.mark.parametrize("seed", SEEDS)
def test_policy_loss_is_the_papers_formula(seed: int) -> None:
    ours, old, advantages = 0.4 * np.random.default_rng(seed).normal(size=(3, 20))
    first, second, third = (torch.tensor(values) for values in (ours, old, advantages))
    wanted = [-_paper_policy(*token) for token in zip(ours, old, advantages, strict=True)]
    np.testing.assert_allclose(policy_loss(first, second, third, CLIP).numpy(), wanted, rtol=1e-10)
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, second, third, CLIP), (first,))
    (slope,) = torch.autograd.grad(policy_loss(first, second, third, CLIP).sum(), first)
    held = clipped(first, second, third, CLIP)
    assert torch.equal(slope == 0, held)
    assert 0 < held.sum() < 20


def test_policy_loss_by_hand() -> None:
    # ratios 2, 2, 1/2, 1/2 and 1; A of 1, -1, 1, -1 and 3: min(2, 1.2), min(-2, -1.2), min(1/2, 0.8), min(-1/2, -0.8)
    old = torch.zeros(5)
    ours = torch.tensor([2.0, 2.0, 0.5, 0.5, 1.0]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    assert policy_loss(ours, old, advantages, CLIP).tolist() == pytest.approx([-1.2, 2.0, -0.5, 0.8, -3.0])
    assert clipped(ours, old, advantages, CLIP).tolist() == [True, False, False, True, False]
    assert not clipped(ours, old, torch.zeros(5), CLIP).any()


def test_the_first_update_is_the_policy_gradient() -> None:
    """Where pi is still pi_old the loss's gradient is -A."""
    ours, advantages = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([1.5, -0.5])
    (slope,) = torch.autograd.grad(policy_loss(ours, ours.detach(), advantages, CLIP).sum(), ours)
    assert slope.tolist() == [-1.5, 0.5]


@pytest.mark.parametrize("seed", SEEDS)
def test_value_loss(seed: int) -> None:
    values, old, returns = np.random.default_rng(seed).normal(size=(3, 20))
    wanted = []
    for value, before, target in zip(values, old, returns, strict=True):
        held = min(max(value, before - CLIP), before + CLIP)
        wanted.append(0.5 * max((value - target) ** 2, (held - target) ** 2))
    first, second, third = (torch.tensor(each) for each in (values, old, returns))
    np.testing.assert_allclose(value_loss(first, second, third, CLIP).numpy(), wanted, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, second, third, CLIP), (first.requires_grad_(),))


def test_value_loss_by_hand() -> None:
    # old 0, clip 0.2. 1 is held at 0.2: of a target of 1 the error is 0.8, not 0; of one of 0 it is 1, not 0.2
    found = value_loss(torch.tensor([1.0, 1.0, 0.1]), torch.zeros(3), torch.tensor([1.0, 0.0, 0.5]), 0.2)
    assert found.tolist() == pytest.approx([0.32, 0.5, 0.08])


FAR = (0.0, -1e-7, -1.0, -50.0, -500.0, -1e5)


def test_finite_stays_finite() -> None:
    """Policies however far from each other, in float32: losses and gradients are numbers."""
    ours, old, reference = torch.cartesian_prod(*[torch.tensor(FAR)] * 3).T
    ours = ours.clone().requires_grad_()
    for advantage in (-2.0, 0.0, 2.0):
        advantages = torch.full((len(ours),), advantage)
        mask = torch.ones(len(ours), 1, dtype=torch.bool)
        columns = ours[:, None], old[:, None]
        grpo = grpo_loss(*columns, advantages, mask, clip=CLIP, reference=reference[:, None], beta=BETA)
        for losses in (policy_loss(ours, old, advantages, CLIP), grpo, *(KL[name](ours, reference) for name in KL)):
            assert losses.isfinite().all()
            assert torch.autograd.grad(losses.sum(), ours, retain_graph=True)[0].isfinite().all()


# --- GRPO ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [True, False])
def test_group_advantages(seed: int, scale: bool) -> None:
    rewards = np.random.default_rng(seed).normal(size=12)
    wanted = []
    for start in range(0, 12, 4):
        group = rewards[start : start + 4]
        mean = sum(group) / 4
        std = sqrt(sum((reward - mean) ** 2 for reward in group) / 3)
        wanted += [(reward - mean) / (std + 1e-4) if scale else reward - mean for reward in group]
    found = group_advantages(torch.tensor(rewards), 4, scale=scale)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_group_advantages_by_hand() -> None:
    found = group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    assert found.tolist() == pytest.approx([-1 / sqrt(2), 1 / sqrt(2), 0.0, 0.0], rel=1e-3)
    assert group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2, scale=False).tolist() == [-1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("size", [3, 6, 7, 8])
def test_a_group_that_agrees_has_no_advantages(size: int, scale: bool) -> None:
    """The mean of equal rewards, rounded in float32, may be another number, and apart from it they would all be."""
    for reward in (0.1, 0.7, -1.28, 1000.1):
        found = group_advantages(torch.full((2 * size,), reward), size, scale=scale)
        assert found.dtype == torch.float32
        assert not found.any(), (reward, found)


@pytest.mark.parametrize("scale", [True, False])
def test_an_answer_without_a_reward_is_no_part_of_its_group(scale: bool) -> None:
    nan = float("nan")
    rewards = torch.tensor([1.0, nan, 3.0, 5.0, nan, nan, 2.0, nan, nan, nan, nan, nan])
    found = group_advantages(rewards, 4, scale=scale)
    alone = group_advantages(torch.tensor([1.0, 3.0, 5.0]), 3, scale=scale)
    assert found[[0, 2, 3]].tolist() == pytest.approx(alone.tolist()) and not found[[1, *range(4, 12)]].any()
    assert group_spread(rewards, 4).tolist() == pytest.approx([2.0, 0.0, 0.0])


def _paper_grpo(ours: np.ndarray, old: np.ndarray, ref: np.ndarray, advantage: float, length: int | None) -> float:
    """An answer's part of equation 3, which is to be raised."""
    total = 0.0
    for token in range(len(ours)):
        kl = exp(ref[token]) / exp(ours[token]) - log(exp(ref[token]) / exp(ours[token])) - 1
        total += _paper_policy(ours[token], old[token], advantage) - BETA * kl
    return total / (length or len(ours))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [None, 16])
def test_grpo_is_the_papers_formula(seed: int, length: int | None) -> None:
    rollout = Rollout(seed)
    ours, old, reference = rollout.rows(), rollout.rows(), rollout.rows()
    advantages = rollout.random.normal(size=ROWS)
    wanted = [-_paper_grpo(*row, length) for row in zip(ours, old, reference, advantages, strict=True)]
    first = rollout.padded(ours, junk=1.0).requires_grad_()

    def losses(log_probs: Tensor) -> Tensor:
        return grpo_loss(
            log_probs,
            rollout.padded(old),
            torch.tensor(advantages),
            rollout.mask,
            clip=CLIP,
            reference=rollout.padded(reference),
            beta=BETA,
            length=length,
        )

    np.testing.assert_allclose(losses(first).detach().numpy(), wanted, rtol=1e-10)
    assert torch.autograd.gradcheck(losses, (first,))


def test_grpo_by_hand() -> None:
    # ratios 2 and 1, A 1: (1.2 + 1) / 2; without a reference
    ours, old = torch.tensor([[0.0, -1.0, JUNK]]), torch.tensor([[-log(2), -1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert grpo_loss(ours, old, torch.ones(1), mask, clip=CLIP).item() == pytest.approx(-1.1)
    assert grpo_loss(ours, old, torch.ones(1), mask, clip=CLIP, length=4).item() == pytest.approx(-2.2 / 4)


@pytest.mark.parametrize(("loss_type", "length"), [("grpo", None), ("dr_grpo", 16)])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_is_trls_grpo(loss_type: str, length: int | None, beta: float) -> None:
    found = pytest.importorskip(
        "trl.trainer.grpo_trainer",
        reason="trl, the oracle, is not installed: pip install '.[dev]'",
        exc_type=ModuleNotFoundError,
    )
    rollout = Rollout(9)
    ours = rollout.padded(rollout.rows(), junk=0.0).requires_grad_()
    old, reference = (rollout.padded(rollout.rows(), junk=0.0) for _ in range(2))
    advantages = torch.tensor(rollout.random.normal(size=ROWS))
    trainer = object.__new__(found.GRPOTrainer)
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    attributes = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": beta,
        "epsilon_low": CLIP,
        "epsilon_high": CLIP,
        "loss_type": loss_type,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False),
        "use_vllm": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": length,
        "_entropy_bonus_enabled": False,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (ours, torch.zeros_like(ours), None),
    }
    for name, value in attributes.items():
        setattr(trainer, name, value)
    prompt = torch.zeros(ROWS, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros(ROWS, LONGEST, dtype=torch.long),
        "completion_mask": rollout.mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    theirs = trainer._compute_loss(None, inputs)
    mine = grpo_loss(ours, old, advantages, rollout.mask, clip=CLIP, reference=reference, beta=beta, length=length)
    torch.testing.assert_close(mine.mean(), theirs)
    (slope,), (wanted,) = torch.autograd.grad(mine.mean(), ours), torch.autograd.grad(theirs, ours)
    torch.testing.assert_close(slope, wanted)
    held = masked_mean(clipped(ours, old, advantages[:, None], CLIP).double(), rollout.mask)
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [pytest.approx(held.item())]
    if beta:
        kl = masked_mean(KL["k3"](ours, reference), rollout.mask)
        assert trainer._metrics["train"]["kl"] == [pytest.approx(kl.item())]
