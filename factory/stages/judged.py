"""What the stages share that judge whole answers: the answers of a batch, as a preference's loss reads them."""

from typing import Any

from factory.losses import sequence_log_probs
from factory.preference import Answers, Options, preference, watched
from factory.stages.loss import Loss


def pair_loss(name: str, model: Any, batch: dict[str, Any], options: Options) -> Loss:
    """A loss of `preference.LOSSES`, summed over the pairs. The first half of the rows are the chosen answers."""
    sums, tokens = sequence_log_probs(model, batch)
    pairs, reference = len(sums) // 2, batch.get("reference")
    sides = [
        Answers(sums[rows], tokens[rows], None if reference is None else reference[rows])
        for rows in (slice(0, pairs), slice(pairs, None))
    ]
    found = preference(name, sides[0], sides[1], options)
    metrics = {name: (value, pairs) for name, value in watched(found.chosen, found.rejected).items()}
    return Loss(found.losses.sum(), metrics)
