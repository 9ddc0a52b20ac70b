from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from factory.data.batches import halves
from factory.losses import sequence_log_probs
from factory.preference import kto, kto_divergence
from factory.stages.loss import Loss


def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Loss:
    """Of 2n rows, n answers and n mismatched ones, which say how far the model is from its reference."""
    desirable = batch["desirable"]
    answers, mismatched = halves(batch)
    with torch.no_grad(), _no_casts_kept():
        divergence = kto_divergence(sequence_log_probs(model, mismatched)[0], mismatched["reference"])
    losses, rewards = kto(sequence_log_probs(model, answers)[0], answers["reference"], desirable, divergence, **own)
    metrics = {
        "rewards/chosen": (rewards.where(desirable, 0).sum(), desirable.sum()),
        "rewards/rejected": (rewards.where(~desirable, 0).sum(), (~desirable).sum()),
        "kl": (divergence * len(losses), len(losses)),
    }
    return Loss(losses.sum(), metrics)


@contextmanager
def _no_casts_kept() -> Iterator[None]:
    """Autocast would give the pass with gradients the weights that were cast here.

    That pass, recomputed, casts them itself: selective checkpointing finds more operations than were there before.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
