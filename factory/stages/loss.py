"""What a stage's loss gives: a sum that the loop divides, and what people watch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from factory.ranks.world import World

Unit = Literal["tokens", "samples"]  # what a stage's loss is the mean over


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is the sum over a batch's trained tokens, or over its samples; `metrics` are (sum, how many)."""

    total: Any
    metrics: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def parts(self) -> tuple[Any, dict[str, tuple[Any, int]]]:
        """As a tuple, in which libraries that split a model find its tensors."""
        return self.total, self.metrics


@dataclass(slots=True)
class Watched:
    """The means of what is watched, over several batches."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: dict[str, tuple[Any, int]]) -> None:
        for name, (value, count) in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items() if self.counts[name]}


def over_ranks(world: World, total: float, watched: Watched) -> tuple[float, Watched]:
    """A sum of losses and what is watched, of all ranks together, added in their order."""
    whole, summed = Watched(), 0.0
    for part, sums, counts in world.gathered((total, watched.sums, watched.counts)):
        summed += part
        whole.add({name: (value, counts[name]) for name, value in sums.items()})
    return summed, whole
