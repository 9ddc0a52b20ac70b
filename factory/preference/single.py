"""Losses of answers judged one by one, and of the scores of a reward model."""

from typing import TYPE_CHECKING

from factory.preference.logs import log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def kto_divergence(log_probs: "Tensor", reference: "Tensor") -> "Tensor":
    """KTO's reference point z0, a scalar without gradient: Ethayarajh et al. 2024 (2402.01306), at eq. 8.

    Both (m): log-probabilities of answers to other prompts than their own, by the model and by its reference. They are
    those of a micro-batch, in each process its own: so several compute what one does that accumulates.
    """
    assert len(log_probs) > 0
    return (log_probs - reference).detach().mean().clamp(min=0)


def kto(
    log_probs: "Tensor",
    reference: "Tensor",
    desirable: "Tensor",
    divergence: "Tensor | float",
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple["Tensor", "Tensor"]:
    """KTO, Ethayarajh et al. 2024 (2402.01306), eq. 8: each answer's lambda_y - v(x, y), and its reward, both (n).

    log_probs, reference: (n), sums; desirable: (n), bool; divergence: z0. Each answer stands for itself, so a batch
    may hold one kind only.
    """
    ratio = log_probs - reference
    wanted = desirable_weight * (-beta * (ratio - divergence)).sigmoid()
    unwanted = undesirable_weight * (beta * (ratio - divergence)).sigmoid()
    return wanted.where(desirable, unwanted), beta * ratio.detach()


def bradley_terry(chosen: "Tensor", rejected: "Tensor") -> "Tensor":
    """A reward model's loss of each pair of scores, (n): Ouyang et al. 2022 (2203.02155), eq. 1."""
    return -log_sigmoid(chosen - rejected)
