"""Packing: lengths of documents to the pieces that fill each sequence. It never sees a token."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Sequence s has the pieces bounds[s] up to bounds[s + 1]; a piece is the tokens starts up to stops of a row.

    `rows` are places in the lengths that were given.
    """

    bounds: Integers
    rows: Integers
    starts: Integers
    stops: Integers

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> Integers:
        """Tokens of each sequence."""
        ends = np.concatenate([[0], np.cumsum(self.stops - self.starts)])
        return np.diff(ends[self.bounds])


def alone(lengths: Integers) -> Pieces:
    """Each row a sequence of its own."""
    count = len(lengths)
    return Pieces(np.arange(count + 1), np.arange(count), np.zeros(count, np.int64), lengths.astype(np.int64))


def way(kind: str) -> Callable[[Integers, int], Pieces]:
    """Texts are cut, conversations stay whole."""
    return cut if kind == "text" else best_fit


def best_fit(lengths: Integers, room: int) -> Pieces:
    """Best-fit decreasing: each row, the longest first, goes where it leaves the least room.

    A sequence is found by its room: bit r of `rooms` says that one has exactly r tokens left, so the search is for the
    lowest bit at or above the row's length (Ding et al. 2024, arXiv 2404.10830, has a tree in its place).
    """
    assert not len(lengths) or 1 <= lengths.min() <= lengths.max() <= room, "a row that no sequence can hold"
    shortest, rooms, count = int(lengths.min(initial=room)), 0, 0
    having: list[list[int]] = [[] for _ in range(room + 1)]  # the sequences that have so many tokens left
    place = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    placed = list[int]()
    for length in lengths[order].tolist():
        fitting = rooms >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            sequence = having[left].pop()
            if not having[left]:
                rooms ^= 1 << left
        else:
            left, sequence, count = room, count, count + 1
        left -= length
        if left >= shortest:
            having[left].append(sequence)
            rooms |= 1 << left
        placed.append(sequence)
    place[order] = placed
    rows = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[rows], np.arange(count + 1))
    return Pieces(bounds, rows, np.zeros(len(rows), np.int64), lengths[rows].astype(np.int64))


def cut(lengths: Integers, room: int) -> Pieces:
    """The documents one after another, cut every `room` tokens; the last sequence has what is left.

    A last token that would stand alone predicts nothing: the sequence before gives one away to it.
    """
    assert not len(lengths) or lengths.min() >= 1, "a document without tokens"
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    sequences = np.arange(room, total + room, room, dtype=np.int64).clip(max=total)
    if len(sequences) > 1 and sequences[-1] - sequences[-2] == 1 and room > 2:
        sequences[-2] -= 1
    stops = np.union1d(ends, sequences)
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64) if len(stops) else stops
    rows = np.searchsorted(ends, starts, side="right")
    begins = (ends - lengths)[rows] if len(rows) else rows
    bounds = np.concatenate([[0], np.searchsorted(stops, sequences) + 1]).astype(np.int64)
    return Pieces(bounds, rows, starts - begins, stops - begins)
