"""Packing: every token once, sequences full, the same every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.data import packing
from factory.data.packing import Pieces

lengths_and_room = st.integers(3, 40).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=80), st.just(room))
)


def tokens(pieces: Pieces) -> list[list[tuple[int, int]]]:
    """Each sequence's tokens, as (row, place in it)."""
    parts = list(zip(pieces.rows.tolist(), pieces.starts.tolist(), pieces.stops.tolist(), strict=True))
    return [
        [(row, place) for row, start, stop in parts[first:last] for place in range(start, stop)]
        for first, last in zip(pieces.bounds[:-1].tolist(), pieces.bounds[1:].tolist(), strict=True)
    ]


def slowly(lengths: list[int], room: int) -> list[int]:
    """Room left in each sequence, by looking at every one of them."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, free in enumerate(left) if free >= length]
        if fitting:
            left[min(fitting, key=lambda number: left[number])] -= length
        else:
            left.append(room - length)
    return left


@given(lengths_and_room)
def test_best_fit_holds_every_row_once_and_as_tight_as_by_looking(case: tuple[list[int], int]) -> None:
    lengths, room = case
    pieces = packing.best_fit(np.array(lengths, np.int64), room)
    found = tokens(pieces)
    assert sorted(token for sequence in found for token in sequence) == [
        (row, place) for row, length in enumerate(lengths) for place in range(length)
    ]
    assert all(0 < len(sequence) <= room for sequence in found)
    assert sorted(room - len(sequence) for sequence in found) == sorted(slowly(lengths, room))
    assert pieces.lengths.tolist() == [len(sequence) for sequence in found]
    assert all((np.diff(pieces.rows[first:last]) > 0).all() for first, last in zip(pieces.bounds, pieces.bounds[1:]))  # noqa: B905


@settings(max_examples=300)
@given(st.lists(st.integers(1, 60), max_size=30), st.integers(3, 40))
def test_cutting_loses_no_token_and_changes_no_order(lengths: list[int], room: int) -> None:
    pieces = packing.cut(np.array(lengths, np.int64), room)
    found = tokens(pieces)
    everything = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert [token for sequence in found for token in sequence] == everything
    sizes = [len(sequence) for sequence in found]
    assert all(size == room for size in sizes[:-2])
    assert not sizes or sizes[-1] <= room
    # one token alone would predict nothing
    assert sum(lengths) <= 1 or min(sizes) > 1
    assert len(sizes) == -(-sum(lengths) // room)
    assert pieces.lengths.tolist() == sizes


def test_alone_is_each_row_as_it_is() -> None:
    pieces = packing.alone(np.array([3, 1]))
    assert tokens(pieces) == [[(0, 0), (0, 1), (0, 2)], [(1, 0)]]
    assert len(packing.alone(np.array([], np.int64))) == 0


@pytest.mark.parametrize("room", [128, 2048])
def test_many_rows_leave_next_to_no_room(room: int) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 20_000).astype(np.int64).clip(8, room)
    pieces = packing.best_fit(lengths, room)
    again = packing.best_fit(lengths, room)
    assert all((getattr(pieces, name) == getattr(again, name)).all() for name in ("bounds", "rows", "stops"))
    assert len(pieces) <= 1.002 * lengths.sum() / room + 1
