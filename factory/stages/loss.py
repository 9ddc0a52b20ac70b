"""What a stage's loss gives: a sum that the loop divides, and what people watch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from factory.ahead import sent
from factory.ranks.world import World

REFERENCE_POINT = "reference_point"  # of a batch: a sum over all micro-batches of a step, and of how many it is
Unit = Literal["tokens", "samples"]  # what a stage's loss is the mean over
Metrics = dict[str, tuple[Any, Any]]  # of what is watched: a sum, and how many it is of; numbers or tensors of one


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is the sum over a batch's trained tokens, or over its samples; `metrics` are (sum, how many)."""

    total: Any
    metrics: Metrics = field(default_factory=dict)

    def parts(self) -> tuple[Any, Metrics]:
        """As a tuple, in which libraries that split a model find its tensors."""
        return self.total, self.metrics


@dataclass(slots=True)
class Watched:
    """The means of what is watched, over several batches. What is added is read when the means are."""

    added: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    def add(self, metrics: Metrics) -> None:
        for name, found in metrics.items():
            self.added.setdefault(name, []).append(found)

    def sent(self) -> "Watched":
        """On its way to the CPU (`factory.ahead.sent`)."""
        return Watched(
            {name: [(sent(value), sent(count)) for value, count in found] for name, found in self.added.items()}
        )

    def sums(self) -> dict[str, tuple[float, int]]:
        """Of each name the sum of its values, and how many they are of."""
        return {
            name: (sum(float(value) for value, _ in found), sum(int(count) for _, count in found))
            for name, found in self.added.items()
        }

    def means(self) -> dict[str, float]:
        return {name: value / count for name, (value, count) in self.sums().items() if count}


def over_ranks(world: World, total: float, watched: Watched) -> tuple[float, Watched]:
    """A sum of losses and what is watched, of all ranks together, added in their order."""
    whole, summed = Watched(), 0.0
    for part, sums in world.gathered((total, watched.sums())):
        summed += part
        whole.add(sums)
    return summed, whole
