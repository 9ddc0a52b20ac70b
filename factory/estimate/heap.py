"""glibc's heap by sizes: where blocks lie, so how high it grows. What is freed is not given back (run/launch.py).

A block takes the smallest free stretch that holds it, and its rest stays free; neighbours that are free are one
(glibc's _int_malloc, for large requests). torch asks for blocks that start at a multiple of 64, and glibc looks for a
stretch with room to move them (_int_memalign): so the hole that a tensor leaves does not hold another of its size, and
the heap is a quarter higher than what is ever held at once.
"""

from bisect import bisect_left, insort

from factory.plan import Patch

_ALIGNMENT, _SMALLEST, _UNIT, _HEADER = 64, 32, 16, 16  # bytes

_TURNS = 2  # of a pass: each costs time in pages that come back, and more than two leave no fewer holes

Place = tuple[int, int]  # start and size, in bytes


def gives_back(patch: Patch, layers: int) -> range:
    """The layers before which what is free goes back to the system: some of those that are recomputed.

    Each leaves its input behind in a hole that a larger tensor had left, and the heap would grow by that tensor from
    layer to layer. Compiled layers cannot be interrupted.
    """
    recomputed = 0 if patch.compile else patch.recomputed(layers)
    return range(0, recomputed, max(1, recomputed // _TURNS))


class Heap:
    """`top` is where it ends, in bytes; it never shrinks. `peak` is the most that was resident of it."""

    def __init__(self) -> None:
        self.top = self.peak = 0
        self._given_back = 0  # bytes
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._starts: dict[int, int] = {}  # of free stretches: start to size
        self._ends: dict[int, int] = {}  # end to start

    def take(self, count: int) -> Place:
        """A block of so many bytes at a multiple of 64."""
        size = _block(count)
        start, whole = self._stretch(size + _ALIGNMENT + _SMALLEST)
        moved = start
        if (start + _HEADER) % _ALIGNMENT:
            moved = -(-(start + _HEADER) // _ALIGNMENT) * _ALIGNMENT - _HEADER
            moved += _ALIGNMENT if moved - start < _SMALLEST else 0
            self.give(start, moved - start)
        return self._cut(moved, start + whole - moved, size)

    def take_small(self, count: int) -> Place:
        """A block wherever it fits."""
        return self._cut(*self._stretch(_block(count)), _block(count))

    def _cut(self, start: int, whole: int, size: int) -> Place:
        rest = whole - size
        if rest < _SMALLEST:
            return start, whole
        self.give(start + size, rest)
        return start, size

    def _stretch(self, size: int) -> tuple[int, int]:
        at = bisect_left(self._free, (size, -1))
        if at < len(self._free):
            found, start = self._free[at]
            self._forget(found, start)
            return start, found
        start = self._ends.get(self.top, self.top)  # what is free at the end grows
        if start < self.top:
            self._forget(self.top - start, start)
        self.top = start + size
        self.peak = max(self.peak, self.top - self._given_back)
        return start, size

    def give_back(self) -> None:
        """What is free is not resident any more (malloc_trim): to use it again is as to grow."""
        self._given_back += sum(size for size, _ in self._free)
        self._free.clear()
        self._starts.clear()
        self._ends.clear()

    def give(self, start: int, size: int) -> None:
        if (before := self._ends.get(start)) is not None:
            self._forget(start - before, before)
            start, size = before, size + start - before
        if (after := self._starts.get(start + size)) is not None:
            self._forget(after, start + size)
            size += after
        self._remember(start, size)

    def _remember(self, start: int, size: int) -> None:
        insort(self._free, (size, start))
        self._starts[start], self._ends[start + size] = size, start

    def _forget(self, size: int, start: int) -> None:
        del self._free[bisect_left(self._free, (size, start))]
        del self._starts[start], self._ends[start + size]


def _block(count: int) -> int:
    """Bytes that glibc takes for so many."""
    return max(_SMALLEST, -(-(count + _HEADER // 2) // _UNIT) * _UNIT)
