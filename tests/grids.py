"""Tables of cases that are too many for each run of the tests."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def diagonal(rows: Iterable[str], columns: Iterable[str]) -> list[Any]:
    """All pairs, for `parametrize`: each row and each column is in one that always runs; the others are slow."""
    rows, columns = list(rows), list(columns)
    met = {(rows[at % len(rows)], columns[at % len(columns)]) for at in range(max(len(rows), len(columns)))}
    return [pytest.param(*pair, marks=() if pair in met else pytest.mark.slow) for pair in product(rows, columns)]
