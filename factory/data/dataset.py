"""The prepared rows as what is trained: examples, pairs or labelled ones, read from the mapped files when asked for."""

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from factory import cache
from factory.data import packing
from factory.data.packing import Integers, Pieces
from factory.data.prepare.store import Prepared, Side, writing
from factory.data.record import Kind, Medium
from factory.plan.known import code
from factory.plan.plan import Pack

IGNORED = -100  # a label that is not trained, as torch's cross entropy has it
# of a batch: (2, tokens), rows and places of the tokens before those that are trained; how many are of labelled answers
TRAINED_AT, OF_ANSWERS = "trained_at", "trained_answers"


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. `documents` are the lengths of what is packed, where they must not see each other.

    `weights`, one a token, say what each trained token counts in the loss; None: all 1. Of a single conversation,
    `asked` is where the text before the last answer stands, and `prompt` the number of tokens before that answer.
    """

    ids: list[int]
    labels: list[int]
    documents: tuple[int, ...] = ()
    weights: list[float] | None = None
    media: tuple[Medium, ...] = ()
    asked: tuple[int, int] = field(default=(0, 0), compare=False)
    prompt: int = field(default=0, compare=False)

    @property
    def count(self) -> int:
        """Trained tokens, whatever their weight. The first token is predicted by nothing."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def trained(self) -> float:
        """Trained tokens, each by its weight: what the loss is divided by."""
        if self.weights is None:
            return self.count
        pairs = zip(self.labels[1:], self.weights[1:], strict=True)
        return sum(weight for label, weight in pairs if label != IGNORED)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the same prompt: both begin with the same tokens."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer that is wanted or not. The first `prompt` tokens are what it answers."""

    example: Example
    label: bool
    prompt: int


Sample = Example | Pair | Labelled


class Samples(Protocol):
    """What is trained, by number: a list of them, or a set that reads each when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Sample: ...


Piece = tuple[Side, int, int]  # the tokens start up to stop of a row


def example(pieces: list[Piece], *, isolate: bool, media: tuple[Medium, ...] = ()) -> Example:
    """One sequence of the pieces. An isolated document's first token is predicted by nothing of its own."""
    size = sum(stop - start for _, start, stop in pieces)
    ids, labels = np.empty(size, np.int32), np.full(size, IGNORED, np.int32)
    weights = np.zeros(size, np.float32)
    at = 0
    for side, start, stop in pieces:
        ids[at : at + stop - start] = side.ids[start:stop]
        for (first, last), weight in zip(side.spans.tolist(), side.weights.tolist(), strict=True):
            if weight > 0 and first < stop and last > start:
                begin, end = max(first, start), min(last, stop)
                labels[at + begin - start : at + end - start] = side.ids[begin:end]
                weights[at + begin - start : at + end - start] = weight
        if isolate:
            labels[at], weights[at] = IGNORED, 0
        at += stop - start
    uneven = bool(((weights != 0) & (weights != 1)).any())
    only = pieces[0][0] if len(pieces) == 1 else None
    return Example(
        ids.tolist(),
        labels.tolist(),
        tuple(stop - start for _, start, stop in pieces) if isolate else (),
        weights.tolist() if uneven else None,
        media,
        only.asked if only else (0, 0),
        only.prompt if only else 0,
    )


def alone(packed: Example) -> list[Example]:
    """The documents of a packed sequence, a sequence each."""
    found, at = list[Example](), 0
    for size in packed.documents:
        part = slice(at, at + size)
        weights = None if packed.weights is None else packed.weights[part]
        found.append(Example(packed.ids[part], packed.labels[part], weights=weights))
        at += size
    return found


def without_end(ids: Sequence[int], stops: Container[int]) -> list[int]:
    """An answer up to the token that ends it, which a decoder shows where it was added to the tokenizer."""
    return list(takewhile(lambda token: token not in stops, ids))


def labelled(side: Side, label: bool, media: tuple[Medium, ...] = ()) -> Labelled:
    """What is trained is the answer that has the label; all before it is prompt."""
    found = example([(side, 0, len(side.ids))], isolate=False, media=media)
    return Labelled(found, label, int(side.spans[0, 0]))


class Dataset:
    """Sequences over prepared rows: as many as there are pieces for, each read when it is asked for.

    `rows` are numbers in all sources one after another, as `mix` gives them.
    """

    def __init__(self, sources: Mapping[str, Prepared], rows: Integers, pieces: Pieces, kind: Kind, *, isolate: bool):
        self._names, self._sources = list(sources), list(sources.values())
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self._rows, self._pieces, self.kind, self._isolate = rows, pieces, kind, isolate

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, sequence: int) -> Sample:
        found = self._of(sequence)
        media = tuple(medium for source, row, *_ in found for medium in source.media(row))
        source, row, *_ = found[0]
        if self.kind == "pairs":
            sides = (source.side(row, rejected=worse) for worse in (False, True))
            return Pair(*(example([(side, 0, len(side.ids))], isolate=False, media=media) for side in sides))
        if self.kind == "labelled":
            return labelled(source.side(row), source.label(row), media)
        pieces = [(source.side(row), start, stop) for source, row, start, stop in found]
        return example(pieces, isolate=self._isolate, media=media)

    def _of(self, sequence: int) -> list[tuple[Prepared, int, int, int]]:
        """The sequence's pieces: source, row in it, first token, last."""
        if not 0 <= sequence < len(self):
            raise IndexError(sequence)
        at = slice(*self._pieces.bounds[sequence : sequence + 2])
        columns = (self._pieces.rows, self._pieces.starts, self._pieces.stops)
        parts = zip(*(column[at].tolist() for column in columns), strict=True)
        return [(*self._place(int(self._rows[row])), start, stop) for row, start, stop in parts]

    def _place(self, row: int) -> tuple[Prepared, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[number], int(row - self._starts[number])

    def pieces(self, sequence: int) -> list[tuple[str, int, int]]:
        """What the sequence is made of: a source's name, the number of the row in it, from 0, and the piece's tokens.

        Of a pair these are the chosen answer's.
        """
        names = {id(source): name for name, source in zip(self._names, self._sources, strict=True)}
        found = self._of(sequence)
        return [(names[id(source)], int(source.rows[row]), stop - start) for source, row, start, stop in found]

    @property
    def lengths(self) -> Integers:
        """Tokens of each sequence, of a pair both answers', without reading any."""
        if self.kind != "pairs":
            return self._pieces.lengths
        return self._joined(source.lengths + source.rejected_lengths for source in self._sources)

    def counts(self) -> dict[str, int]:
        """Tokens, trained tokens (of any weight above 0), and what truncation did to the distinct rows."""
        first = np.unique(self._rows, return_index=True)[1]
        cut = self._joined(source.cut for source in self._sources)[first]
        ended = self._joined(source.open_ended for source in self._sources)[first]
        special = self._joined(source.special for source in self._sources)[first]
        sides = (False, True) if self.kind == "pairs" else (False,)
        return {
            "tokens": int(self.lengths.sum()),
            "trained_tokens": sum(self._trained(rejected=rejected) for rejected in sides),
            "truncated": int((cut > 0).sum()),
            "cut_tokens": int(cut.sum()),
            "open_ended": int(ended.sum()),
            "special_in_text": int(special.sum()),
        }

    def _joined(self, columns: Iterable[NDArray[Any]]) -> Integers:
        """A number of each row of this set, from those of the sources."""
        return np.concatenate([np.zeros(0, np.int64), *columns])[self._rows]

    def _trained(self, *, rejected: bool) -> int:
        found = [source.trained(rejected=rejected) for source in self._sources]
        trained, leading = (self._joined(column) for column in zip(*found, strict=True))
        lengths = self._joined(source.lengths for source in self._sources)
        rows, starts, stops = self._pieces.rows, self._pieces.starts, self._pieces.stops
        whole = (starts == 0) & (stops == lengths[rows])
        # only plain documents are cut, and of these all tokens are trained
        tokens = np.where(whole, trained[rows], stops - starts)
        begins = np.where(starts == 0, leading[rows], True)
        if not self._isolate:
            begins = begins[self._pieces.bounds[:-1]]
        return int(tokens.sum()) - int(begins.sum())


def dataset(sources: Mapping[str, Prepared], rows: Integers, pack: Pack, kind: Kind) -> Dataset:
    """The rows as sequences. How they are packed is kept in the cache, beside the rows."""
    lengths = np.concatenate([np.zeros(0, np.int64), *(source.lengths for source in sources.values())])[rows]
    if not pack.packing or kind not in ("text", "messages"):
        return Dataset(sources, rows, packing.alone(lengths), kind, isolate=False)
    fill = packing.way(kind)
    key = hashlib.sha256(f"{fill.__name__} {pack.max_length} {code()}".encode() + lengths.tobytes()).hexdigest()
    path = cache.folder() / "data" / f"pieces-{key[:32]}.npz"
    pieces = _kept(path) or _keep(path, fill(lengths, pack.max_length))
    return Dataset(sources, rows, pieces, kind, isolate=pack.isolate_documents)


def _kept(path: Path) -> Pieces | None:
    try:
        with np.load(path, allow_pickle=False) as found:
            return Pieces(found["bounds"], found["rows"], found["starts"], found["stops"])
    except (FileNotFoundError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or not as it was written
        return None


def _keep(path: Path, pieces: Pieces) -> Pieces:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            with aside.open("wb") as file:
                np.savez(file, bounds=pieces.bounds, rows=pieces.rows, starts=pieces.starts, stops=pieces.stops)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
    return pieces
