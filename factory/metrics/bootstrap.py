"""How sure a difference is: Koehn 2004, "Statistical significance tests for machine translation evaluation"."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[np.float64]  # (rows, k): sums over rows of which a metric is a function; or (k)
_BLOCK = 4_000_000  # drawn numbers that exist at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the second run from the first, with an interval that holds it with the asked confidence.

    The interval is endless where one that was drawn is no number, as the perplexities of a model that has diverged.
    """

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0: only then is one run better."""
        return self.low > 0 or self.high < 0


def difference(
    first: Statistics,
    second: Statistics,
    metric: Callable[[Statistics], float],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap: the same rows are drawn for both runs, with replacement; the interval is of percentiles.

    first, second: (rows, k), what each row adds to the sums that `metric` (of (k) numbers) is a function of. Rows that
    are the same in both runs stand at the same place.
    """
    assert first.shape == second.shape and len(first) > 0
    rows, generator = len(first), np.random.default_rng(seed)
    found = list[float]()
    while len(found) < samples:
        count = min(samples - len(found), max(1, _BLOCK // rows))
        draws = generator.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)
        found += [metric(b) - metric(a) for a, b in zip(draws @ first, draws @ second, strict=True)]
    outside = 100 * (1 - confidence) / 2
    known = all(map(isfinite, found))
    low, high = np.percentile(found, [outside, 100 - outside]) if known else (-inf, inf)
    return Difference(metric(second.sum(0)) - metric(first.sum(0)), float(low), float(high))
