from typing import Any

import torch
from torch import Tensor

from factory.data.batches import halves
from factory.losses import sequence_log_probs
from factory.preference import kto, kto_divergence
from factory.stages.loss import REFERENCE_POINT, Loss


def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Loss:
    """Return the loss of n answers; the batch also has n mismatched ones, which say how far the reference is.

    The reference point is of all micro-batches of a step where the engine has taken it, else of this one.
    """
    desirable, point = batch["desirable"], batch.get(REFERENCE_POINT)
    answers, _ = halves({name: values for name, values in batch.items() if name != REFERENCE_POINT})
    divergence = kto_divergence(*point or reference_point(model, batch))
    losses, rewards = kto(sequence_log_probs(model, answers)[0], answers["reference"], desirable, divergence, **own)
    metrics = {
        "rewards/chosen": (rewards.where(desirable, 0).sum(), desirable.sum()),
        "rewards/rejected": (rewards.where(~desirable, 0).sum(), (~desirable).sum()),
        "kl": (divergence * len(losses), len(losses)),
    }
    return Loss(losses.sum(), metrics)


@torch.no_grad()
def reference_point(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the sum of the mismatched answers' log-ratios to the reference, and their number: scalars."""
    _, mismatched = halves(batch)
    ratios = sequence_log_probs(model, mismatched)[0] - mismatched["reference"]
    return ratios.sum(), torch.full_like(ratios[0], len(ratios))
