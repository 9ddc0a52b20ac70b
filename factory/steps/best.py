"""The best of a run's evaluations, and when there were enough without a better one. No torch."""

from dataclasses import dataclass
from math import isfinite

LOWER_IS_BETTER = frozenset({"loss"})  # of all else that can be compared, higher is


@dataclass(slots=True)
class Best:
    """What a run's evaluations said so far. It is carried over a resume.

    `counted` is the value of the last one that counted as an improvement; `stale` are the evaluations since.
    """

    metric: str
    step: int | None = None
    value: float | None = None
    counted: float | None = None
    stale: int = 0

    def add(self, step: int, value: float, threshold: float) -> bool:
        """Whether this is the best so far. One that is not finite never is.

        Small gains add up: the threshold is held against the last value that counted, not against the last best.
        """
        if not isfinite(value):
            self.stale += 1
            return False
        better = self.value is None or self._gain(value, self.value) > 0
        if better:
            self.step, self.value = step, value
        if self.counted is None or self._gain(value, self.counted) > threshold:
            self.counted, self.stale = value, 0
        else:
            self.stale += 1
        return better

    def _gain(self, value: float, before: float) -> float:
        return before - value if self.metric in LOWER_IS_BETTER else value - before
