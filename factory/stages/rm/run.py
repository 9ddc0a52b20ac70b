from typing import Any

from torch import Tensor

from factory.losses import answer_states
from factory.plan import heads
from factory.preference import bradley_terry, watched
from factory.stages.loss import Loss
from factory.stages.rm.spec import SCORE


def loss(model: Any, batch: dict[str, Any], _own: dict[str, Any]) -> Loss:
    """Summed over the pairs. The first half of the rows are the chosen answers."""
    chosen, rejected = scores(model, batch).chunk(2)
    found = watched(chosen.detach(), rejected.detach())
    return Loss(bradley_terry(chosen, rejected).sum(), {name: (value, len(chosen)) for name, value in found.items()})


def scores(model: Any, batch: dict[str, Any]) -> Tensor:
    """Of each row the score of its answer, read at the answer's last trained token: (rows), in float32 at least."""
    return heads.apply(model, SCORE, answer_states(model, batch))[:, 0]
