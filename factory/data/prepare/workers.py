"""Blocks of raw rows to blocks of encoded ones, in this process or in several: each block is a pure function's work."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.refusal import Refusal, UserError, refuse
from factory.data import formats, mix
from factory.data.encoding import EncodedRow, Encoder, EncoderSpec
from factory.data.media.read import is_url
from factory.data.read import Row
from factory.data.record import MEDIA, BadRow, Record
from factory.data.truncate import TooLong
from factory.tied import tie_worker

BLOCK_ROWS = 500
_BLOCK_CHARACTERS = 4_000_000  # so that long documents do not fill the memory
_FEW = 40  # blocks that are sooner done here than processes are started
_THREADS = 4  # of this process: all but tokenizing is done by one at a time, a quarter of the work
_PARALLELISM = "TOKENIZERS_PARALLELISM"
_OUTSIDE = "a path leads out of its set's folder"
_AHEAD = 2  # blocks a process that are under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligning:
    """How a source's rows become records. `inside`: the folders that its media must lie in; None: anywhere.

    Paths of media start at `folder`, and where none is asked for, at the source's `own`.
    """

    format: str
    columns: dict[str, str]
    tags: dict[str, str]
    folder: str | None
    inside: tuple[str, ...] | None = None
    own: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `first`, `first` + 1 … of the source `name`. Those that rank above `limit` by the seed are not wanted."""

    aligning: Aligning
    first: int
    rows: list[Row]
    seed: int = 0
    limit: int | None = None
    name: str = "the set"


@dataclass(frozen=True, slots=True)
class Bad:
    row: int
    rank: int
    reason: str
    aligned: bool  # false: its format does not allow it


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a block. `numbers`, `digests` (rows, 2) and `ranks` are of the encoded rows.

    `files` are the media of all rows that were looked at, of the bad ones too.
    """

    rows: int
    skipped: int
    bad: list[Bad]
    encoded: list[EncodedRow]
    numbers: list[int]
    digests: mix.Ranks
    ranks: mix.Ranks
    files: frozenset[str] = frozenset()


def blocks(rows: Iterable[Row], aligning: Aligning, seed: int = 0, name: str = "the set") -> Iterator[Block]:
    """Blocks of BLOCK_ROWS rows, of fewer where they are long."""
    held, first, size = list[Row](), 0, 0
    for row in rows:
        held.append(row)
        size += _characters(row)
        if len(held) >= BLOCK_ROWS or size >= _BLOCK_CHARACTERS:
            yield Block(aligning, first, held, seed, name=name)
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(aligning, first, held, seed, name=name)


def _characters(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 8


def encode(encoder: Encoder, block: Block) -> Encoded:
    """Aligns and encodes the block's rows. Raises UserError where a row is to stop the run."""
    format, columns = block.aligning.format, block.aligning.columns
    digests = mix.words([mix.digest(formats.read_of(row, format, columns)) for row in block.rows])
    ranks = mix.ranks(digests, block.seed, "sample")
    wanted = range(len(ranks)) if block.limit is None else np.flatnonzero(ranks <= block.limit).tolist()
    bad, places, records = list[Bad](), list[int](), list[Record]()
    for at in wanted:
        try:
            records.append(record_of(block.rows[at], block.aligning))
            places.append(at)
        except BadRow as error:
            bad.append(Bad(block.first + at, int(ranks[at]), str(error), False))
    kept, encoded = list[int](), list[EncodedRow]()
    for at, found in zip(places, encoder.encode(records) if records else [], strict=True):
        if isinstance(found, TooLong):
            wrong = f"row {block.first + at + 1:,} of {block.name} has {found}"
            raise refuse(
                "row-too-long",
                "data.truncation=error",
                wrong,
                because="data.truncation=error allows none that is longer",
                fix="raise data.max_length, or set data.truncation=drop",
            )
        if isinstance(found, BadRow):
            bad.append(Bad(block.first + at, int(ranks[at]), str(found), True))
        else:
            kept.append(at)
            encoded.append(found)
    numbers = [block.first + at for at in kept]
    media = (place for record in records for places in record.media.values() for place in places)
    files = frozenset(place for place in media if not place.startswith("data:"))
    skipped = len(block.rows) - len(wanted)
    return Encoded(len(block.rows), skipped, bad, encoded, numbers, digests[kept], ranks[kept], files)


def record_of(row: Row, aligning: Aligning) -> Record:
    """Raises BadRow."""
    record = formats.align(row, aligning.format, aligning.columns, aligning.tags)
    if not record.media:
        return record
    return replace(
        record, **{name: tuple(_placed(place, aligning) for place in getattr(record, name)) for name in MEDIA}
    )


def _placed(place: str, aligning: Aligning) -> str:
    """A medium's path, from where its set's paths start. Raises BadRow where rows may not name what lies there."""
    if is_url(place) and (aligning.inside is None or place[:5].lower() != "file:"):
        return place  # of an address: that none is fetched is said where it is read
    start = aligning.folder if aligning.folder is not None else aligning.own
    found = Path(start or "") / place
    inside = aligning.inside
    if aligning.folder is not None and not Path(place).is_absolute():  # who trains names it, of a hub's set too
        inside = (aligning.folder,)
    if inside is not None and not any(_lies_in(found, folder) for folder in inside):
        raise BadRow(_OUTSIDE)
    return str(found) if start is not None else place


def _lies_in(path: Path, folder: str) -> bool:
    """Wherever its `..` lead; a link inside is its owner's."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100  follows no link


class Workers:
    """Encodes blocks in their order. Processes are started when there is enough to do, and live until it is left."""

    def __init__(self, spec: EncoderSpec, processes: int):
        self._spec, self._processes = spec, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    @property
    def reads_media(self) -> bool:
        """Whether tokens depend on images, videos or sounds."""
        return self._spec.processor is not None

    def encode(self, blocks: Iterable[Block]) -> Iterator[Encoded]:
        return self._map(blocks, lambda block: block, encode)

    def tables(
        self, blocks: Iterable[Block], limit: Callable[[], int | None] = lambda: None
    ) -> Iterator[tuple[Encoded, bytes]]:
        """With the encoded rows as an Arrow record batch (store.schema), and no longer as objects.

        `limit` is asked for each block when its turn comes.
        """
        return self._map(blocks, lambda block: replace(block, limit=limit()), _tabled)

    def _map(self, blocks: Iterable[Block], last: Callable[[Block], Block], work: Any) -> Iterator[Any]:
        """`last` is done to a block just before its turn."""
        blocks = iter(blocks)
        if self._pool is None:
            yield from self._here(islice(blocks, _FEW) if self._processes > 1 else blocks, last, work)
        more = next(blocks, None)
        if more is None:
            return
        if self._pool is None:
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, initializer=_start, initargs=(self._spec,))
        pool = self._pool
        ahead = _AHEAD * self._processes
        try:
            for found in _in_order(
                chain([more], blocks), last, lambda block: pool.submit(_in_worker, work, block), ahead
            ):
                if isinstance(found, _Refused):
                    raise UserError(*found.refusals)
                yield found
        except BrokenProcessPool:
            self._pool = None
            raise refuse(
                "worker-lost",
                "data",
                "a process that prepares rows is gone",
                because="the system ended it, most often for want of memory",
                fix="free memory, or set hardware.threads lower, so that fewer of them run",
                machine=True,
            ) from None

    def _here(self, blocks: Iterator[Block], last: Callable[[Block], Block], work: Any) -> Iterator[Any]:
        """In threads: while one renders, others tokenize, which holds no lock."""
        encoder = self._spec.encoder
        # neither processors nor tokenizers that are written in Python are made for threads
        several = self._spec.tokenizer is not None and self._spec.processor is None
        threads = min(self._processes, _THREADS) if several else 1
        # what a block is made of lives as long as the block
        with _tokenized_by(threads), ThreadPoolExecutor(threads, "encode") as pool:
            yield from _in_order(blocks, last, lambda block: pool.submit(work, encoder, block), threads + 1)


@contextmanager
def _tokenized_by(threads: int) -> Iterator[None]:
    """Of several threads each tokenizes alone: the tokenizer's own threads beside them would be too many."""
    before = os.environ.get(_PARALLELISM)
    if threads > 1:
        os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PARALLELISM, None)
        else:
            os.environ[_PARALLELISM] = before


def _in_order(
    blocks: Iterator[Block], last: Callable[[Block], Block], send: Callable[[Block], Future[Any]], ahead: int
) -> Iterator[Any]:
    """The results of the blocks that are sent away, with at most so many under way."""
    waiting: deque[Future[Any]] = deque()
    try:
        for block in blocks:
            waiting.append(send(last(block)))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _tabled(encoder: Encoder, block: Block) -> tuple[Encoded, bytes]:
    from factory.data.prepare.store import as_batch

    found = encode(encoder, block)
    return replace(found, encoded=[]), as_batch(found)


@dataclass(frozen=True, slots=True)
class _Refused:
    """An exception with such arguments would not survive the way back from a worker."""

    refusals: tuple[Refusal, ...]


# of a worker's process: its encoder, made once
_encoder: Encoder | None = None


def _start(spec: EncoderSpec) -> None:
    os.environ[_PARALLELISM] = "false"  # the processes are the parallelism
    tie_worker()
    global _encoder
    _encoder = spec.encoder


def _in_worker(work: Any, block: Block) -> Any:
    assert _encoder is not None
    try:
        return work(_encoder, block)
    except UserError as error:
        return _Refused(error.refusals)
