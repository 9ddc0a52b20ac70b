"""Rows that are longer than allowed: which tokens stay. Never a cut inside a header, a special token or an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from factory.data.record import BadRow

Span = tuple[int, int]
_NO_ROOM = "no room for the answer"


@dataclass(frozen=True, slots=True)
class Layout:
    """A row's tokens: `texts` may be cut, `answers` are to be learnt, all else is structure.

    `exchanges` are where a user's turn begins: what lies between the first of them and another can be taken away.
    `system` is the one of the texts that is the system's.
    `whole(at)` tells whether a cut before token `at` leaves the characters whole. Of a pair, texts and exchanges are
    those of the prompt that both answers share.
    """

    length: int
    texts: Sequence[Span]
    answers: Sequence[Span]
    exchanges: Sequence[int]
    whole: Callable[[int], bool]
    system: Span | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The stretches that stay, in order. `open_ended`: the last answer has lost its end."""

    stretches: tuple[Span, ...]
    open_ended: bool = False


def kept(layout: Layout, limit: int, truncation: str) -> Kept:
    """What stays of a row. Raises BadRow where nothing of use can, UserError for truncation=error."""
    if layout.length <= limit:
        return Kept(((0, layout.length),))
    return _WAYS[truncation](layout, limit)


def shifted(spans: Sequence[tuple[int, int, float]], stays: Kept) -> list[tuple[int, int, float]]:
    """The spans' places among the tokens that stay; those that are gone left out."""
    found = list[tuple[int, int, float]]()
    for start, end, weight in spans:
        before, parts = 0, list[Span]()
        for first, last in stays.stretches:
            begin, stop = max(start, first), min(end, last)
            if begin < stop:
                parts.append((before + begin - first, before + stop - first))
            before += last - first
        if parts:
            found.append((parts[0][0], parts[-1][1], weight))
    return found


def _drop(layout: Layout, limit: int) -> Kept:
    raise BadRow("longer than max_length")


class TooLong(BadRow):
    """A row that is too long where the user wants to be told of the first one."""


def _error(layout: Layout, limit: int) -> Kept:
    raise TooLong(f"{layout.length:,} tokens")


def _right(layout: Layout, limit: int) -> Kept:
    """The end goes: the last answer that has begun is the last thing that stays."""
    for start, end in reversed(layout.answers):
        stop = min(end, _back(layout, limit, start))
        if stop > start:
            return Kept(((0, stop),), open_ended=stop < end)
    raise BadRow(_NO_ROOM)


def _left(layout: Layout, limit: int) -> Kept:
    """Whole exchanges go, the oldest first, then the beginnings of the last question's texts; the rest stays."""
    if not layout.exchanges:
        raise BadRow(_NO_ROOM)
    first = layout.exchanges[0]
    for start in layout.exchanges[1:]:
        if first + layout.length - start <= limit:
            return Kept(_joined([(0, first), (start, layout.length)]))
    start = layout.exchanges[-1]
    excess = first + layout.length - start - limit
    cuts = [(first, start)]
    for begin, end in layout.texts:
        if excess > 0 and begin >= start and (begin, end) != layout.system:
            cut = _forward(layout, begin + max(0, min(excess, end - begin - 1)), end)
            cuts.append((begin, cut))
            excess -= cut - begin
    if excess > 0:
        raise BadRow(_NO_ROOM)
    return _without(layout, cuts)


def _keep_response(layout: Layout, limit: int) -> Kept:
    """The longest texts lose their beginnings, down to one length for all that are cut; every answer stays whole."""
    lengths = sorted(end - start for start, end in layout.texts if end > start)
    room = limit - (layout.length - sum(lengths))
    if not lengths or room < len(lengths):
        raise BadRow(_NO_ROOM)
    cap, spare = _level(lengths, room)
    cuts = list[Span]()
    for start, end in layout.texts:
        if end - start > cap:
            stays, spare = (cap + 1, spare - 1) if spare else (cap, 0)
            cuts.append((start, _forward(layout, end - stays, end)))
    return _without(layout, cuts)


def _level(lengths: list[int], room: int) -> tuple[int, int]:
    """The greatest length to which all longer ones can be cut so that the sum fits, and what room it leaves."""
    for number, length in enumerate(lengths):  # the shortest first
        left = len(lengths) - number
        if length * left > room:
            return divmod(room, left)
        room -= length
    raise AssertionError("they fit as they are")


def _back(layout: Layout, at: int, least: int) -> int:
    while at > least and not layout.whole(at):
        at -= 1
    return at


def _forward(layout: Layout, at: int, most: int) -> int:
    while at < most and not layout.whole(at):
        at += 1
    return at


def _without(layout: Layout, cuts: Sequence[Span]) -> Kept:
    ends = [(0, 0), *sorted(cuts), (layout.length, layout.length)]
    return Kept(_joined([(before[1], after[0]) for before, after in pairwise(ends)]))


def _joined(stretches: Sequence[Span]) -> tuple[Span, ...]:
    """Without empty stretches, and those that touch in one."""
    made = list[Span]()
    for start, end in stretches:
        if made and made[-1][1] == start:
            made[-1] = (made[-1][0], end)
        elif start < end:
            made.append((start, end))
    return tuple(made)


_WAYS: dict[str, Callable[[Layout, int], Kept]] = {
    "drop": _drop,
    "error": _error,
    "right": _right,
    "left": _left,
    "keep_response": _keep_response,
}
