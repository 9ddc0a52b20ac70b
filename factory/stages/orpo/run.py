from typing import Any

from factory.preference import Options
from factory.stages.judged import pair_loss
from factory.stages.loss import Loss


def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Loss:
    return pair_loss("orpo", model, batch, Options(beta=own["beta"]))
