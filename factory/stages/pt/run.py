from typing import Any

from factory.losses import causal_lm
from factory.stages.loss import Loss


def loss(model: Any, batch: dict[str, Any], _own: dict[str, Any]) -> Loss:
    return Loss(causal_lm(model, batch))
