"""Windows over a long text: every token after the first is counted once, with the context that was asked for."""

import pytest

from factory.data.dataset import IGNORED, Example
from factory.evaluation.windows import windows


def text(size: int) -> Example:
    return Example(list(range(100, 100 + size)), list(range(100, 100 + size)))


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("size", range(1, 40))
def test_each_token_is_counted_once(size: int, stride: int) -> None:
    row, length = text(size), 8
    found = list(windows(row, length, stride))
    assert all(len(part.ids) == len(part.labels) <= length for part in found)
    counted = [label for part in found for label in part.labels[1:] if label != IGNORED]
    assert counted == row.labels[1:]
    assert sum(part.trained for part in found) == row.trained
    for number, part in enumerate(found):
        first = next((at for at in range(1, len(part.ids)) if part.labels[at] != IGNORED), 1)
        assert first == (1 if number == 0 else length - stride)
        start = row.ids.index(part.ids[0])
        assert part.ids == row.ids[start : start + len(part.ids)]
        assert part.labels[first:] == part.ids[first:]


def test_what_is_not_trained_is_not_counted() -> None:
    row = Example(list(range(20)), [IGNORED] * 5 + list(range(5, 20)))
    found = list(windows(row, 8, 7))
    assert sum(part.trained for part in found) == row.trained == 15
    assert list(windows(text(8), 8, 7)) == [text(8)]
