"""How many steps there are, and the learning rate as a pure function of the step: nothing to save or to restore."""

from collections.abc import Callable
from math import ceil, cos, pi

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + cos(pi * done)),
}


def steps_per_epoch(examples: int, batch_size: int, accumulation: int) -> int:
    return ceil(examples / (batch_size * accumulation))


def total_steps(examples: int, batch_size: int, accumulation: int, num_epochs: float, max_steps: int | None) -> int:
    return max_steps or max(1, ceil(num_epochs * steps_per_epoch(examples, batch_size, accumulation)))


def factor(name: str, step: int, total: int, warmup_ratio: float) -> float:
    """What step `step` of `total` (from 0) multiplies the peak by: a linear rise, then the decay.

    The rise starts above 0, so that no step is spent without learning: transformers' schedules of the same names, the
    rise one step on.
    """
    warmup = ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return DECAYS[name]((step - warmup) / max(1, total - warmup))
