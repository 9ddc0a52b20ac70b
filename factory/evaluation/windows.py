"""A text that is longer than a context is measured in windows, each token after its first counted once. No torch."""

from collections.abc import Iterator
from dataclasses import replace

from factory.data.dataset import IGNORED, Example


def windows(row: Example, length: int, stride: int) -> Iterator[Example]:
    """The row itself where it is no longer than `length` tokens, else windows of at most so many.

    The first window counts all its tokens but the first, which nothing predicts; each later one ends `stride` tokens
    further and counts these alone, the `length - stride` before them being their context. With a stride of length - 1
    two windows share one token, and no token is read twice but that.
    """
    assert 1 <= stride < length
    size = len(row.ids)
    if size <= length:
        yield row
        return
    assert not row.documents and not row.media and row.weights is None, "only plain texts are longer"
    counted = 1  # tokens whose prediction is counted, or that nothing predicts
    end = length
    while counted < size:
        start, end = max(0, end - length), min(end, size)
        labels = [IGNORED] * (counted - start) + row.labels[counted:end]
        yield replace(row, ids=row.ids[start:end], labels=labels)
        counted, end = end, end + stride
