from typing import Any

from factory.losses import causal_lm, row_losses
from factory.stages.loss import Loss

__all__ = ["loss", "row_losses"]


def loss(model: Any, batch: dict[str, Any], _own: dict[str, Any]) -> Loss:
    return Loss(causal_lm(model, batch))
