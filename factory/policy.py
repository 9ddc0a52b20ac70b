"""The arithmetic of learning from rollouts: rewards of tokens, advantages, the losses of PPO and GRPO.

Shapes: n answers of t tokens, padded on the right; mask: (n, t), bool, the tokens that an answer has. Position i of
`log_probs` is of token i, and of `values` what is expected before token i is there. Functions that take a mask give 0
where it is False, whatever stands there; the others are of single tokens, for `masked_sum` to add up. What is finite
gives finite losses and gradients. arXiv numbers stand for the papers.
"""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

_FARTHEST = 20.0  # of a log-ratio before exp: e^20 is no policy's neighbour, and e^89 is no float32
_ERROR_CLIP = 0.2  # Ziegler et al. 2019, section 2.2
_STD_FLOOR = 1e-4  # TRL's: a group that agrees has advantages of 0
_VARIANCE_FLOOR = 1e-8  # lm-human-preferences'


def _half_square(log_probs: Tensor, reference: Tensor) -> Tensor:
    return 0.5 * (log_probs - reference) ** 2


def _without_bias(log_probs: Tensor, reference: Tensor) -> Tensor:
    log_ratio = (reference - log_probs).clamp(max=_FARTHEST)
    return log_ratio.expm1() - log_ratio


# Estimates of KL(pi || pi_ref) from a token that pi drew, Schulman's "Approximating KL divergence" (2020): with
# r = pi_ref / pi, k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r. k1 and k3 have no bias; k3 is never negative.
KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": operator.sub, "k2": _half_square, "k3": _without_bias}


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens that are there: a scalar."""
    return values.masked_fill(~mask, 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there: a scalar; 0 of none."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


@torch.no_grad()
def token_rewards(
    log_probs: Tensor, reference: Tensor, scores: Tensor, mask: Tensor, coefficient: float, estimate: str = "k1"
) -> Tensor:
    """Each token's reward: (n, t). Ziegler et al. 2019 (1909.08593), eq. 2; Ouyang et al. 2022 (2203.02155), eq. 2.

    -coefficient KL at each token, and the answer's score on its last one. scores: (n); the rest (n, t).
    """
    count = mask.cumsum(1)
    last = mask & (count == count[:, -1:])
    penalty = coefficient * KL[estimate](log_probs, reference)
    return (scores[:, None] * last - penalty).masked_fill(~mask, 0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantages + values), both (n, t): Schulman et al. 2016 (1506.02438), eq. 16.

    An answer ends with its last token: what follows is worth 0.
    """
    values = values.masked_fill(~mask, 0)
    deltas = rewards.masked_fill(~mask, 0) - values
    deltas[:, :-1] += gamma * values[:, 1:]
    advantages = torch.empty_like(deltas)
    ahead = torch.zeros_like(deltas[:, 0])
    for at in range(deltas.shape[1] - 1, -1, -1):
        ahead = deltas[:, at] + gamma * lam * ahead
        advantages[:, at] = ahead
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """Values of variance 1 over the tokens that are there, and of mean 0 unless not to `shift`: (n, t).

    As OpenAI's lm-human-preferences: the variance is the mean square, not the sample's.
    """
    mean = masked_mean(values, mask)
    spread = masked_mean((values - mean) ** 2, mask)
    white = (values - mean) * (spread + _VARIANCE_FLOOR).rsqrt()
    return (white if shift else white + mean).masked_fill(~mask, 0)


def policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Each token's -min(r A, clip(r, 1 - clip, 1 + clip) A), r = pi / pi_old: PPO, Schulman et al. 2017 (1707.06347).

    Equation 7, its sign turned. All of the same shape, or advantages (n, 1).
    """
    ratio = _ratio(log_probs, old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Which tokens' loss is held by the clip and so has no gradient: bool."""
    ratio = _ratio(log_probs, old)
    return torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip) & (advantages != 0)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Each token's half squared error, the larger of it and that of the value held within `clip` of the old one.

    As OpenAI's baselines and lm-human-preferences; PPO's paper has no such clip.
    """
    held = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)


def adapted(coefficient: float, kl: float, *, target: float, horizon: float, samples: int) -> float:
    """The KL's coefficient for the next rollout batch: Ziegler et al. 2019 (1909.08593), section 2.2.

    kl: the mean over answers of KL(pi || pi_ref), a sum over tokens, in nats; samples: how many answers it was measured
    on. The paper's K_beta is samples / horizon, as in its code; at most 1, beyond which the coefficient could turn
    negative.
    """
    error = min(max(kl / target - 1, -_ERROR_CLIP), _ERROR_CLIP)
    return coefficient * (1 + min(samples / horizon, 1.0) * error)


def group_advantages(rewards: Tensor, size: int, *, scale: bool = True) -> Tensor:
    """GRPO's advantages of answers, (n), the `size` answers to a prompt side by side: Shao et al. 2024 (2402.03300).

    Section 4.1.2: (r - mean) / std of the group. Not to `scale` leaves the std out: Dr. GRPO, Liu et al. 2025
    (2503.20783). The std is the sample's, as in TRL. An answer whose reward is nan has none: it is no part of its
    group's mean and std, and its advantage is 0.
    """
    apart = _apart(rewards, size)
    found = apart / (group_spread(rewards, size)[:, None] + _STD_FLOOR) if scale else apart
    return found.view(-1).to(rewards.dtype)


@torch.no_grad()
def group_spread(rewards: Tensor, size: int) -> Tensor:
    """The sample's standard deviation of each group's rewards that are not nan: (n / size); 0 of fewer than two."""
    scored = (~rewards.isnan()).view(-1, size).sum(1)
    return (_apart(rewards, size).square().sum(1) / (scored - 1).clamp(min=1)).sqrt()


def _apart(rewards: Tensor, size: int) -> Tensor:
    """How far each reward is from its group's mean: (n / size, size); 0 of one that is nan."""
    assert size > 1
    # in float32 the mean of equal rewards may round to another number, which over the floor would be an advantage
    groups = rewards.double().view(-1, size)
    return (groups - groups.nanmean(1, keepdim=True)).nan_to_num(0)


def grpo_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    reference: Tensor | None = None,
    beta: float = 0.0,
    length: int | None = None,
) -> Tensor:
    """GRPO's loss of each answer, (n): Shao et al. 2024 (2402.03300), eq. 3, its sign turned; the KL is k3 (eq. 4).

    A mean over the answer's tokens; with `length` their sum over that constant (Dr. GRPO, 2503.20783). advantages: (n).
    """
    losses = policy_loss(log_probs, old, advantages[:, None], clip)
    if beta:
        assert reference is not None
        losses = losses + beta * KL["k3"](log_probs, reference)
    return losses.masked_fill(~mask, 0).sum(1) / (mask.sum(1).clamp(min=1) if length is None else length)


def _ratio(log_probs: Tensor, old: Tensor) -> Tensor:
    return (log_probs - old).clamp(max=_FARTHEST).exp()
