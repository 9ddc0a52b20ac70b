"""Windows over a long text: every token after the first is counted once, with the context that was asked for."""

import pytest

from factory.data.dataset import IGNORED, Example
from factory.evaluation.windows import part, windows


def text(size: int) -> Example:
    return Example(list(range(100, 100 + size)), list(range(100, 100 + size)))


def read(row: Example, length: int, stride: int) -> list[Example]:
    return [part(row, window) for window in windows(len(row.ids), length, stride)]


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("size", range(1, 40))
def test_each_token_is_counted_once(size: int, stride: int) -> None:
    row, length = text(size), 8
    found = read(row, length, stride)
    assert all(len(each.ids) == len(each.labels) <= length for each in found)
    counted = [label for each in found for label in each.labels[1:] if label != IGNORED]
    assert counted == row.labels[1:]
    assert sum(each.trained for each in found) == row.trained
    for number, each in enumerate(found):
        first = next((at for at in range(1, len(each.ids)) if each.labels[at] != IGNORED), 1)
        assert first == (1 if number == 0 else length - stride)
        start = row.ids.index(each.ids[0])
        assert each.ids == row.ids[start : start + len(each.ids)]
        assert each.labels[first:] == each.ids[first:]


def test_what_is_not_trained_is_not_counted() -> None:
    row = Example(list(range(20)), [IGNORED] * 5 + list(range(5, 20)))
    found = read(row, 8, 7)
    assert sum(each.trained for each in found) == row.trained == 15
    assert read(text(8), 8, 7) == [text(8)]
