"""A text that is longer than a context is measured in windows, each token after its first counted once. No torch."""

from collections.abc import Iterator
from dataclasses import replace

from factory.data.dataset import IGNORED, Example

Window = tuple[int, int, int]  # its first token, its end, and the first token that counts


def windows(size: int, length: int, stride: int) -> Iterator[Window]:
    """All of a text where it is no longer than `length` tokens, else windows of at most so many.

    The first window counts all its tokens but the first, which nothing predicts; each later one ends `stride` tokens
    further and counts these alone, the `length - stride` before them being their context. With a stride of length - 1
    two windows share one token, and no token is read twice but that.
    """
    assert 1 <= stride < length
    end = min(size, length)
    yield 0, end, 1
    while end < size:
        counted, end = end, end + stride
        yield end - length, min(end, size), counted


def part(row: Example, window: Window) -> Example:
    """What of a row a window reads, and counts."""
    start, end, counted = window
    if end - start == len(row.ids):
        return row
    assert not row.documents and not row.media and row.weights is None, "only plain texts are longer"
    labels = [IGNORED] * (counted - start) + row.labels[counted:end]
    return replace(row, ids=row.ids[start:end], labels=labels)
