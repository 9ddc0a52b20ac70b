"""Losses of answers judged one by one, and of the scores of a reward model."""

from typing import TYPE_CHECKING

from factory.preference.logs import log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def kto_divergence(total: "Tensor", number: "Tensor | int") -> "Tensor":
    """Return KTO's reference point z0, a scalar: Ethayarajh et al. 2024 (2402.01306), at eq. 8.

    The log-ratios of the model to its reference, of answers to other prompts than their own, sum up to `total`. TRL
    1.16 takes those of one micro-batch on all ranks; of all micro-batches of a step they are the same however many
    ranks share the step.
    """
    return (total / number).clamp(min=0)


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
