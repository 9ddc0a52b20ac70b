"""Streaming: nothing is prepared. Blocks of rows are read, encoded, packed and shuffled one after the other.

Every draw is a pure function of seed, epoch and block, so a position is a few numbers, and resumes exactly.
"""

import copy
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.refusal import UserError, refuse
from factory.config.settings import Data
from factory.data import batches, mix, packing, read
from factory.data.dataset import Example, Labelled, Pair, Sample, example, labelled
from factory.data.encoding import EncodedRow, Tokens
from factory.data.prepare import Dropped, Prepared, aligning_of, refuse_wrong_format
from factory.data.prepare.store import Side
from factory.data.prepare.workers import BLOCK_ROWS, Block, Encoded, Workers
from factory.data.record import Kind
from factory.plan.plan import DataSource, Pack, held_out_rows

Origin = tuple[str, int]  # a source's name, and the number of a row in it, from 0
_TELLING = 10  # rows of a source in the first block that show whether its format is right, where it has more
_NOTHING: dict[str, Any] = {
    "rows": 0,
    "used": 0,
    "validation": 0,
    "dropped": {},
    "sequences": 0,
    "tokens": 0,
    "trained_tokens": 0,
    "truncated": 0,
    "cut_tokens": 0,
    "open_ended": 0,
    "special_in_text": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a stream goes on: at sequence `sequence` of the block that starts so many rows into the sources.

    `counts` are of all blocks before: rows = used + validation + dropped, each as often as it was read. `read` are
    those with the present block: what was read so far.
    """

    epoch: int = 0
    block: int = 0
    sequence: int = 0
    drawn: int = 0  # rows in this epoch
    taken: dict[str, int] = field(default_factory=dict)  # rows into each source
    ended: tuple[str, ...] = ()  # sources that were used up in this epoch
    counts: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(_NOTHING))
    read: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(_NOTHING), compare=False)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ended": list(self.ended)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Position":
        return cls(**{**tree, "ended": tuple(tree["ended"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(batches.Step):
    """`position` is where the stream goes on after it; `origins` are the rows that it was made of."""

    position: Position
    origins: tuple[Origin, ...]


class Stream:
    """Samples without end, in the order of seed, epoch and block, and the rows that are held out of them.

    A source is drawn for each row, with the weights as probabilities. An epoch ends when one source is used up
    (mixing=interleave_under), or when all are: one that is used up before begins again (interleave_over) or is drawn no
    more (concat). Nothing is known of rows that were not read yet, so `max_samples` are the first ones.

    `validation` is the prepared source that is held out whole, else the first block's rows of the smallest rank are.
    """

    def __init__(
        self,
        data: Data,
        sources: Mapping[str, DataSource],
        pack: Pack,
        kind: Kind,
        seed: int,
        workers: Workers,
        validation: Prepared | None = None,
    ):
        self._data, self._pack, self._kind, self._seed, self._workers = data, pack, kind, seed, workers
        self._sources = {name: source for name, source in sources.items() if name != data.validation}
        self._files = [_Files(source) for source in self._sources.values() if source.asked.origin == "file"]
        self._held = set[bytes]()
        self._first: tuple[list[_Found], Position] | None = None
        self.validation = list[Sample]()
        if validation is not None:
            self._held = {digest.tobytes() for digest in validation.digests}
        elif data.validation_fraction:
            self._hold_out()

    def _hold_out(self) -> None:
        self._first = found, _ = self._read(Position(), self._readers(Position()))
        digests = mix.words([row.digest for row in found])
        count = held_out_rows(len(found), self._data.validation_fraction)
        chosen = mix.held_out(np.arange(len(found)), mix.ranks(digests, self._seed, "hold out"), count)
        self._held = {found[at].digest for at in chosen.tolist()}
        rows = [found[at].row for at in chosen.tolist()]
        self.validation = [sample for sample, _ in self._sequences(rows, packed=False)]

    def samples(self, position: Position | None = None) -> Iterator[tuple[Sample, Position]]:
        """Every sample from the position on, each with the position after it."""
        return ((sample, after) for sample, after, _ in self._told(position))

    def _told(self, position: Position | None) -> Iterator[tuple[Sample, Position, list[Origin]]]:
        """With the rows that each sample was made of."""
        position = position or Position()
        seen = position.block > 0 or position.sequence > 0
        readers: dict[str, _Reader] | None = None
        first, self._first = self._first, None
        while True:
            if position == Position() and first is not None:
                found, after = first
            else:
                readers = readers or self._readers(position)
                found, after = self._read(position, readers)
            first = None
            kept = [each for each in found if each.digest not in self._held]
            order = self._random(position, "rows").permutation(len(kept)).tolist()
            made = self._sequences([kept[at].row for at in order], packed=self._pack.packing)
            samples = [sample for sample, _ in made]
            after.counts["used"] += len(kept)
            after.counts["validation"] += len(found) - len(kept)
            _count_samples(after.counts, [each.row for each in kept], samples)
            turn = self._random(position, "sequences").permutation(len(samples)).tolist()
            for number in range(position.sequence, len(samples)):
                last = number + 1 == len(samples)
                later = after if last else replace(position, sequence=number + 1)
                sample, rows = made[turn[number]]
                origins = [kept[order[row]].origin for row in rows]
                yield sample, replace(later, read=after.counts), origins
            seen = seen or bool(samples)
            if after.epoch > position.epoch:
                if not seen:
                    raise self._nothing(after)
                readers, seen = None, False
            position = after

    def steps(
        self,
        batch_size: int,
        accumulation: int,
        collate: Callable[[list[Any]], dict[str, Any]],
        position: Position | None = None,
    ) -> Iterator[Step]:
        """Optimizer steps without end: batches take what comes, over the ends of blocks and epochs."""
        found = self._told(position)
        while True:
            taken = list(islice(found, batch_size * accumulation))
            samples = [sample for sample, *_ in taken]
            made = batches.step(batches.cut(samples, batch_size, batches.lengths(samples)), collate)
            origins = tuple(origin for *_, rows in taken for origin in rows)
            yield Step(made.batches, made.tokens, made.trained, made.samples, position=taken[-1][1], origins=origins)

    def _readers(self, position: Position) -> dict[str, "_Reader"]:
        return {name: _Reader(source, position.taken.get(name, 0)) for name, source in self._sources.items()}

    def _random(self, position: Position, purpose: str) -> np.random.Generator:
        purposes = ("draws", "rows", "sequences")
        return np.random.default_rng([self._seed, position.epoch, position.block, purposes.index(purpose)])

    def _read(self, position: Position, readers: dict[str, "_Reader"]) -> tuple[list["_Found"], Position]:
        """The block's encoded rows, source by source, and the position of the next block, its counts up to here."""
        counts = copy.deepcopy(position.counts)
        dropped = Dropped(counts["dropped"])
        drawn, after, ended = self._draw(position, readers)
        for each in self._files:
            each.refuse_changed()
        found = list[_Found]()
        misfits, rows = {name: Dropped() for name in self._sources}, Counter[str]()
        for (name, _), encoded in zip(drawn, self._workers.encode(block for _, block in drawn), strict=True):
            counts["rows"] += encoded.rows
            dropped.add(encoded.bad)
            rows[name] += encoded.rows
            misfits[name].add(bad for bad in encoded.bad if not bad.aligned)
            found += _found(name, encoded)
        if position.epoch == position.block == 0:
            for name, source in self._sources.items():
                if rows[name] >= _TELLING or name in ended:
                    refuse_wrong_format(name, source.format, rows[name], misfits[name])
        return found, replace(after, counts=counts)

    def _draw(
        self, position: Position, readers: dict[str, "_Reader"]
    ) -> tuple[list[tuple[str, Block]], Position, set[str]]:
        """The block's rows, the position after it, and the sources that have been read to their end."""
        data, chances = self._data, self._random(position, "draws").random(self._data.shuffle_buffer)
        most = data.max_samples - position.drawn if data.max_samples is not None else len(chances)
        # a source without any row is used up before it begins
        ended = {*position.ended, *(name for name, reader in readers.items() if reader.empty)}
        blocks, filling = list[tuple[str, Block]](), dict[str, Block]()
        count, over = 0, self._over(ended, readers)
        names, bounds = self._drawable(ended, readers)
        for chance in chances[:most].tolist():
            if over:
                break
            name = names[min(bisect_right(bounds, chance * bounds[-1]), len(names) - 1)]
            reader = readers[name]
            block = filling.get(name)
            if block is None or len(block.rows) == BLOCK_ROWS or reader.taken != block.first + len(block.rows):
                block = filling[name] = Block(aligning_of(self._sources[name]), reader.taken, [], name=name)
                blocks.append((name, block))
            block.rows.append(reader.take())
            count += 1
            if reader.ended:
                ended.add(name)
                over = self._over(ended, readers)
                if data.mixing == "interleave_over" and not over:
                    readers[name] = _Reader(self._sources[name], 0)
                names, bounds = self._drawable(ended, readers)
        drawn = position.drawn + count
        if over or (data.max_samples is not None and drawn >= data.max_samples):
            return blocks, Position(epoch=position.epoch + 1), ended
        taken = {name: reader.taken for name, reader in readers.items()}
        order = tuple(name for name in self._sources if name in ended)
        after = Position(epoch=position.epoch, block=position.block + 1, drawn=drawn, taken=taken, ended=order)
        return blocks, after, ended

    def _over(self, ended: set[str], readers: dict[str, "_Reader"]) -> bool:
        """Whether the epoch ends here; a source that has no row at all ends none alone."""
        if self._data.mixing == "interleave_under" and any(not readers[name].empty for name in ended):
            return True
        return len(ended) == len(self._sources)

    def _drawable(self, ended: set[str], readers: dict[str, "_Reader"]) -> tuple[list[str], list[float]]:
        """The sources that a row can come from, and the sums of their weights up to each."""
        again = self._data.mixing == "interleave_over"
        names = [name for name in self._sources if not readers[name].empty and (again or name not in ended)]
        return names, list(accumulate(self._sources[name].asked.weight for name in names))

    def _sequences(self, rows: list[EncodedRow], *, packed: bool) -> list[tuple[Sample, list[int]]]:
        """Each with the rows that it was made of, by their places here."""
        if self._kind == "pairs":
            return [(Pair(_whole(row.tokens), _whole(_rejected(row))), [at]) for at, row in enumerate(rows)]
        if self._kind == "labelled":
            return [(_labelled(row), [at]) for at, row in enumerate(rows)]
        lengths = np.array([len(row.tokens.ids) for row in rows], np.int64)
        pieces = packing.way(self._kind)(lengths, self._pack.max_length) if packed else packing.alone(lengths)
        isolate = packed and self._pack.isolate_documents
        sides = [side_of(row.tokens) for row in rows]
        columns = list(zip(pieces.rows.tolist(), pieces.starts.tolist(), pieces.stops.tolist(), strict=True))
        return [
            (
                example(
                    [(sides[row], start, stop) for row, start, stop in columns[first:last]],
                    isolate=isolate,
                    media=tuple(medium for row, *_ in columns[first:last] for medium in rows[row].tokens.media),
                ),
                [row for row, *_ in columns[first:last]],
            )
            for first, last in zip(pieces.bounds[:-1].tolist(), pieces.bounds[1:].tolist(), strict=True)
        ]

    def _nothing(self, position: Position) -> Exception:
        entries = position.counts["dropped"].items()
        reasons = ", ".join(f"{reason}: {entry['count']:,} rows" for reason, entry in entries) or "there are none"
        return refuse(
            "nothing-to-train",
            "data",
            f"no row is left of {position.counts['rows']:,}",
            because=f"all were dropped: {reasons}",
            fix=(
                "correct the rows; raise data.max_length where they are longer; set another model.template where "
                "it refuses, changes or leaves out what they say"
            ),
        )


class _Files:
    """A source's files, as they are when the run begins: they are read until it ends, and may change meanwhile."""

    def __init__(self, source: DataSource):
        self._source = source
        self._seen = self._look()

    def _look(self) -> list[tuple[str, int, int]]:
        stats = ((str(file), file.stat()) for file in read.files(Path(self._source.path)))
        return [(name, found.st_size, found.st_mtime_ns) for name, found in stats]

    def refuse_changed(self) -> None:
        """Raises UserError where their content is another than the plan's."""
        try:
            now = self._look()
            same = now == self._seen or read.source_digest(self._source) == self._source.sha256
        except (OSError, UserError):
            now, same = [], False
        if not same:
            wrong = "its content has changed while it was read" if now else "it is gone while it was read"
            raise refuse(
                "stream-changed",
                f"path={self._source.path}",
                wrong,
                because="the rows that follow would not be those that the run was planned with",
                fix="put it back as it was and continue with `factory resume`, or start the run again",
                machine=True,
            )
        self._seen = now


class _Reader:
    """A source's rows, with the next one in hand: so its end is known with its last row."""

    def __init__(self, source: DataSource, skip: int):
        self._rows, self._most = read.source_rows(source, skip, streaming=True), source.asked.max_samples
        self.taken = skip
        self._next = next(self._rows, None)

    @property
    def ended(self) -> bool:
        return self._next is None or self.taken == self._most

    @property
    def empty(self) -> bool:
        return self.ended and self.taken == 0

    def take(self) -> read.Row:
        row = self._next
        assert row is not None and not self.ended
        self._next, self.taken = next(self._rows, None), self.taken + 1
        return row


@dataclass(frozen=True, slots=True)
class _Found:
    digest: bytes
    row: EncodedRow
    origin: Origin


def _found(name: str, block: Encoded) -> list[_Found]:
    rows = zip(block.digests, block.encoded, block.numbers, strict=True)
    return [_Found(digest.tobytes(), row, (name, number)) for digest, row, number in rows]


def _count_samples(counts: dict[str, Any], rows: list[EncodedRow], samples: list[Sample]) -> None:
    examples = [each for sample in samples for each in batches.examples(sample)]
    counts["sequences"] += len(samples)
    counts["tokens"] += sum(len(each.ids) for each in examples)
    counts["trained_tokens"] += sum(each.count for each in examples)
    for row in rows:
        sides = [row.tokens, *([row.rejected] if row.rejected else [])]
        cut = sum(side.cut for side in sides)
        counts["truncated"] += cut > 0
        counts["cut_tokens"] += cut
        counts["open_ended"] += any(side.open_ended for side in sides)
        counts["special_in_text"] += any(side.special for side in sides)


def side_of(tokens: Tokens) -> Side:
    """Of a row that is in no file."""
    spans = np.array([(start, end) for start, end, _ in tokens.spans], np.int32).reshape(-1, 2)
    weights = np.array([weight for *_, weight in tokens.spans], np.float32)
    return Side(np.array(tokens.ids, np.int32), spans, weights, tokens.asked, tokens.prompt)


def _rejected(row: EncodedRow) -> Tokens:
    assert row.rejected is not None
    return row.rejected


def _whole(tokens: Tokens) -> Example:
    return example([(side_of(tokens), 0, len(tokens.ids))], isolate=False, media=tokens.media)


def _labelled(row: EncodedRow) -> Labelled:
    assert row.label is not None
    return labelled(side_of(row.tokens), row.label, row.tokens.media)
