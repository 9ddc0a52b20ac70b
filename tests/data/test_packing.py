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


# tokens of 300 rows of instructions, questions and answers of all lengths, in a chat template
INSTRUCTIONS = """
    442 51 359 80 129 152 75 406 65 297 62 297 513 126 377 226 73 74 378 163 416 131 77 163 137 101 343 376 150
    62 319 427 48 277 143 68 239 73 419 330 169 275 139 168 204 287 293 92 84 110 64 255 207 231 148 427 339 82
    222 431 265 82 321 587 73 89 466 138 331 79 317 482 75 269 131 407 146 135 286 58 120 56 258 229 55 244 64
    268 519 262 111 52 67 114 156 105 145 69 162 87 410 53 79 280 152 65 74 214 166 364 65 384 421 242 423 153
    115 216 159 345 208 57 77 324 561 392 285 416 57 78 313 183 242 103 452 71 115 235 95 104 288 64 170 113 60
    108 364 58 145 436 131 141 55 398 368 164 216 57 51 203 54 57 75 419 219 361 312 48 137 79 63 64 190 68 413
    71 295 165 66 606 99 97 232 224 152 178 70 72 59 361 256 187 74 96 359 61 77 282 347 74 63 109 350 239 67
    177 68 107 382 289 304 109 59 528 57 155 63 343 88 301 68 221 309 77 63 77 400 305 74 331 62 94 333 52 415
    64 56 348 363 73 87 74 95 370 242 69 81 206 559 141 166 174 157 204 392 348 334 80 428 287 104 264 120 363
    174 134 402 197 62 561 319 129 257 151 336 216 162 73 118 76 376 83 61 238 261 441 341 204 102 70 296 268
    158 68 65 319 55 177 83 114
"""


def test_rows_as_people_have_them_fill_their_sequences() -> None:
    lengths = np.array(INSTRUCTIONS.split(), np.int64)
    pieces = packing.best_fit(lengths, 2048)
    assert len(lengths) == 300 and pieces.lengths.sum() == lengths.sum()
    assert lengths.sum() / (len(pieces) * 2048) >= 0.98
