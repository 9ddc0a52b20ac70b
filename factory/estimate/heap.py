"""Where blocks lie, by their sizes, so how high a heap grows: what is freed is not given back (run/launch.py).

glibc gives a large request the smallest free stretch that holds it, whose rest stays free (_int_malloc); neighbours
that are free are one. torch asks for blocks that start at a multiple of 64, and glibc looks for a stretch with room to
move them (_int_memalign): the hole that a tensor leaves holds no other of its size.
"""

from bisect import bisect_left, insort

from factory.plan.plan import Patch

_ALIGNMENT, _SMALLEST, _UNIT, _HEADER = 64, 32, 16, 16  # bytes

_TURNS = 2  # of a pass: each costs time in pages that come back, and more than two leave no fewer holes

Place = tuple[int, int]  # start and size, in bytes


def gives_back(patch: Patch, layers: int, *, compiled: bool) -> range:
    """The layers before which what is free goes back to the system: some of those that are recomputed.

    Each leaves its input behind in a hole that a larger tensor had left, and glibc's heap would grow by that tensor
    from layer to layer. Compiled layers cannot be interrupted.
    """
    recomputed = 0 if compiled else patch.recomputed(layers)
    return range(0, recomputed, max(1, recomputed // _TURNS))


class Heap:
    """`top` is how high it has grown, `peak` the most that was resident of it, both in bytes."""

    def __init__(self) -> None:
        self.top = self.peak = 0
        self._absent: list[Place] = []  # stretches without memory, sorted, start and end
        self.missing = 0  # bytes of them
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._starts: dict[int, int] = {}  # of free stretches: start to size
        self._ends: dict[int, int] = {}  # end to start

    def take(self, count: int) -> Place:
        """Place a block of `count` bytes at a multiple of 64."""
        size = _block(count)
        start, whole = self._stretch(size + _ALIGNMENT + _SMALLEST)
        moved = start
        if (start + _HEADER) % _ALIGNMENT:
            moved = -(-(start + _HEADER) // _ALIGNMENT) * _ALIGNMENT - _HEADER
            moved += _ALIGNMENT if moved - start < _SMALLEST else 0
            self.give(start, moved - start)
        return self._placed(moved, start + whole - moved, size)

    def take_small(self, count: int) -> Place:
        """Place a block of `count` bytes wherever it fits."""
        return self._placed(*self._stretch(_block(count)), _block(count))

    def give(self, start: int, size: int) -> None:
        """Free a block; free neighbours become one stretch."""
        if (before := self._ends.get(start)) is not None:
            self._forget(start - before, before)
            start, size = before, size + start - before
        if (after := self._starts.get(start + size)) is not None:
            self._forget(after, start + size)
            size += after
        insort(self._free, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def give_back(self) -> None:
        """Release the memory of all free stretches to the system (malloc_trim), until they are used again."""
        self._absent = sorted((start, start + size) for size, start in self._free)
        self.missing = sum(end - start for start, end in self._absent)

    def _stretch(self, size: int) -> Place:
        """Return the smallest free stretch of at least `size` bytes, or new ones at the top."""
        at = bisect_left(self._free, (size, -1))
        if at < len(self._free):
            found, start = self._free[at]
            self._forget(found, start)
            return start, found
        start = self._ends.get(self.top, self.top)  # what is free at the end grows
        if start < self.top:
            self._forget(self.top - start, start)
        self.top = start + size
        return start, size

    def _placed(self, start: int, whole: int, size: int) -> Place:
        """Cut the block from the start of a stretch of `whole` bytes; a rest that holds no block stays with it."""
        size = whole if whole - size < _SMALLEST else size
        if whole > size:
            self.give(start + size, whole - size)
        self._touch(start, start + size)
        return start, size

    def _touch(self, start: int, end: int) -> None:
        """Make these addresses resident."""
        at = max(0, bisect_left(self._absent, (start, -1)) - 1)
        while at < len(self._absent) and self._absent[at][0] < end:
            first, last = self._absent[at]
            left = [(one, other) for one, other in ((first, min(last, start)), (max(first, end), last)) if one < other]
            self._absent[at : at + 1] = left
            self.missing -= last - first - sum(other - one for one, other in left)
            at += len(left)
        self.peak = max(self.peak, self.top - self.missing)

    def _forget(self, size: int, start: int) -> None:
        del self._free[bisect_left(self._free, (size, start))]
        del self._starts[start], self._ends[start + size]


def _block(count: int) -> int:
    """Bytes that glibc takes for so many."""
    return max(_SMALLEST, -(-(count + _HEADER // 2) // _UNIT) * _UNIT)
