"""The keys and values of many answers that are written side by side, one row of each buffer an answer's.

Columns are moments: a row's newest token is in the last column in use, whatever its length, so that all rows write into
one column at a time, and an answer that comes or goes moves no other. What stands before a row's first token is masked.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_ROOM = 64  # columns that a buffer grows by, at least


class Layer(CacheLayerMixin):
    """One layer's: (rows, heads, columns, width). `start` up to `used` are the columns in use, the same of each layer.

    The model writes the columns after `used`; they count once `Slots.advance` is called.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.start, self.used = 1, 0, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            each.new_zeros(self.rows, each.shape[1], _ROOM, each.shape[3]) for each in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        self.reserve(self.rows, end)
        assert self.keys is not None and self.values is not None
        self.keys[: self.rows, :, self.used : end] = key_states
        self.values[: self.rows, :, self.used : end] = value_states
        return self.keys[: self.rows, :, self.start : end], self.values[: self.rows, :, self.start : end]

    def reserve(self, rows: int, columns: int) -> None:
        """Room for so many, what is there kept."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        there, width = self.keys.shape[0], self.keys.shape[2]
        if rows <= there and columns <= width:
            return
        more_rows = there if rows <= there else max(rows, 2 * there)
        more_columns = width if columns <= width else max(columns + _ROOM, width + width // 2)
        self.keys, self.values = (_enlarged(each, more_rows, more_columns) for each in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used - self.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.used - self.start

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in older releases


def _enlarged(held: Tensor, rows: int, columns: int) -> Tensor:
    made = held.new_zeros(rows, held.shape[1], columns, held.shape[3])
    made[: held.shape[0], :, : held.shape[2]] = held
    return made


class Slots:
    """`cache` is what the model is given. `lengths` are the tokens of each row, in the order of the rows."""

    def __init__(self) -> None:
        self.cache = Cache(layer_class_to_replicate=self._layer)  # type: ignore[arg-type]  # what makes one
        self.lengths: list[int] = []
        self.start = self.used = 0

    def _layer(self) -> Layer:
        layer = Layer()
        layer.rows, layer.start, layer.used = max(1, len(self.lengths)), self.start, self.used
        return layer

    @property
    def layers(self) -> list[Any]:
        return self.cache.layers

    def mask(self) -> Tensor | None:
        """(rows, columns in use and the next), 0 before a row's first token; None where all rows are as long."""
        width = self.used - self.start
        if all(length == width for length in self.lengths):
            return None
        ages = torch.arange(width, -1, -1) - 1  # -1 of what is written now
        return (ages[None, :] < torch.tensor(self.lengths)[:, None]).long()

    def advance(self, more: int = 1) -> None:
        """What the model has written is there."""
        self.used += more
        self.lengths = [length + more for length in self.lengths]
        self._tell()

    def begin(self) -> None:
        """One row, without a token yet."""
        assert not self.lengths
        self.lengths = [0]
        self._tell()

    def add(self, other: "Slots", length: int) -> None:
        """A row with the first `length` tokens of the other's only one."""
        assert len(other.lengths) == 1 and length <= other.lengths[0]
        while len(self.layers) < len(other.layers):
            self.layers.append(self._layer())
        if not self.lengths:
            self.start = self.used = 0
        shift = length - self.used  # to the right: there are not as many columns before the last in use
        row = len(self.lengths)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if not mine.is_initialized:
                mine.rows = 1
                mine.lazy_initialization(theirs.keys[:, :, :1], theirs.values[:, :, :1])
            mine.reserve(row + 1, max(self.used, length))
            for to, source in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                if shift > 0 and row:
                    to[:row, :, self.start + shift : self.used + shift] = to[:row, :, self.start : self.used].clone()
                end = max(self.used, length)
                to[row, :, end - length : end] = source[0, :, other.start : other.start + length]
        if shift > 0:
            self.start, self.used = self.start + shift, self.used + shift
        self.lengths.append(length)
        self._tell()

    def remove(self, row: int) -> None:
        """The last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                for held in (layer.keys, layer.values):
                    held[row, :, self.start : self.used] = held[last, :, self.start : self.used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._tell()
        self._compact()

    def _tell(self) -> None:
        if self.lengths:
            self.start = self.used - max(self.lengths)
        for layer in self.layers:
            layer.rows, layer.start, layer.used = max(1, len(self.lengths)), self.start, self.used

    def _compact(self) -> None:
        """To the left, once as many columns are free there as are in use."""
        width = self.used - self.start
        if not self.lengths or self.start < max(_ROOM, width):
            return
        rows = len(self.lengths)
        for layer in self.layers:
            for held in (layer.keys, layer.values):
                held[:rows, :, :width] = held[:rows, :, self.start : self.used]
        self.start, self.used = 0, width
        self._tell()
