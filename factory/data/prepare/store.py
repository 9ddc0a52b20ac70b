"""Encoded rows in Arrow files that are mapped: written aside and renamed, so what is there is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory import cache
from factory.config.refusal import UserError, refuse
from factory.data.encoding import Tokens
from factory.data.media.read import file_of
from factory.data.mix import DIGEST_BYTES, Ranks
from factory.data.prepare.workers import Encoded
from factory.data.record import Medium

_SHARD_BYTES = 256 * 2**20
_INDEX = "index.json"
_KEYS = {"counts", "sizes", "files", "looks"}  # of the index
_SIDES = ("", "rejected_")  # of a pair; of other rows the second is empty


def schema() -> Any:
    """A line is a row. Spans are start, end, start, end … of trained tokens; `weights` has one number a span.

    `media` are kind, place, kind, place …

    `label` is 1, 0, or -1 where a row has none.
    """
    import pyarrow as pa

    tokens = [
        ("ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
        ("asked", pa.list_(pa.int32())),
        ("cut", pa.int32()),
        ("open", pa.int8()),
        ("special", pa.int8()),
    ]
    sides = [(side + name, kind) for side in _SIDES for name, kind in tokens]
    row = [("media", pa.list_(pa.string())), ("label", pa.int8()), ("row", pa.int64())]
    return pa.schema([*sides, *row, ("digest", pa.binary(DIGEST_BYTES))])


_EMPTY = Tokens([], [])
_DTYPES = {"int8": np.int8, "int32": np.int32, "int64": np.int64, "float": np.float32}  # by Arrow's names


def as_batch(block: Encoded) -> bytes:
    """The encoded rows as one record batch, serialized without its schema."""
    import pyarrow as pa

    rows = block.encoded
    columns = [*_tokens([row.tokens for row in rows]), *_tokens([row.rejected or _EMPTY for row in rows])]
    columns.append(_lists([[*chain.from_iterable(row.tokens.media)] for row in rows], _texts))
    columns.append(_numbers([-1 if row.label is None else int(row.label) for row in rows], pa.int8()))
    columns.append(_numbers(block.numbers, pa.int64()))
    columns.append(pa.Array.from_buffers(pa.binary(DIGEST_BYTES), len(rows), [None, _buffer(block.digests)]))
    return pa.RecordBatch.from_arrays(columns, schema=schema()).serialize().to_pybytes()


def _tokens(sides: list[Tokens]) -> list[Any]:
    import pyarrow as pa

    integers, floats = partial(_numbers, kind=pa.int32()), partial(_numbers, kind=pa.float32())
    return [
        _lists([side.ids for side in sides], integers),
        _lists([[at for start, end, _ in side.spans for at in (start, end)] for side in sides], integers),
        _lists([[weight for *_, weight in side.spans] for side in sides], floats),
        _lists([[*side.asked, side.prompt] for side in sides], integers),
        integers([side.cut for side in sides]),
        _numbers([side.open_ended for side in sides], pa.int8()),
        _numbers([side.special for side in sides], pa.int8()),
    ]


# made of buffers: pyarrow.array would import pandas, in every worker


def _lists(values: Sequence[Sequence[Any]], inner: Callable[[Iterable[Any]], Any]) -> Any:
    import pyarrow as pa

    items = inner(chain.from_iterable(values))
    offsets = _buffer(np.cumsum([0, *map(len, values)], dtype=np.int32))
    return pa.Array.from_buffers(pa.list_(items.type), len(values), [None, offsets], children=[items])


def _numbers(values: Iterable[float], kind: Any) -> Any:
    import pyarrow as pa

    found = np.fromiter(values, _DTYPES[str(kind)])
    return pa.Array.from_buffers(kind, len(found), [None, _buffer(found)])


def _texts(values: Iterable[str]) -> Any:
    import pyarrow as pa

    found = [text.encode(errors="surrogatepass") for text in values]
    offsets = _buffer(np.cumsum([0, *map(len, found)], dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), len(found), [None, offsets, pa.py_buffer(b"".join(found))])


def _buffer(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.py_buffer(np.ascontiguousarray(values))


class Writer:
    """Writes record batches into shards of a folder."""

    def __init__(self, folder: Path):
        self._folder, self._shards = folder, list[str]()
        self._sink: Any = None
        self._file: Any = None

    def write(self, batch: bytes) -> None:
        import pyarrow as pa

        if self._file is None:
            self._shards.append(f"{len(self._shards):05}.arrow")
            self._sink = (self._folder / self._shards[-1]).open("wb")
            self._file = pa.ipc.new_file(self._sink, schema())
        self._file.write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), schema()))
        if self._sink.tell() > _SHARD_BYTES:
            self._shut()

    def _shut(self) -> None:
        if self._file is not None:
            self._file.close()
            self._sink.flush()
            os.fsync(self._sink.fileno())
            self._sink.close()
            self._file = self._sink = None

    def finish(self, counts: dict[str, Any], files: Iterable[str] = ()) -> None:
        """What makes the folder whole: the counts, the size of each shard, and the files that tokens depend on."""
        self._shut()
        sizes = {name: (self._folder / name).stat().st_size for name in self._shards}
        places = sorted(files)
        with (self._folder / _INDEX).open("w") as file:
            json.dump({"counts": counts, "sizes": sizes, "files": places, "looks": _looks(places)}, file)
            file.flush()
            os.fsync(file.fileno())

    def abandon(self) -> None:
        if self._sink is not None:
            with suppress(OSError):  # of what it still holds, on the full disk that was told of
                self._sink.close()


@contextmanager
def making(target: Path) -> Iterator[Path | None]:
    """As `cache.making`; a damaged folder gives way."""
    with cache.making(target, is_whole, writing) as aside:
        yield aside
        if aside is not None:
            with writing(target):
                if target.exists() and not is_whole(target):
                    shutil.rmtree(target, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns what a full disk or a forbidden folder raises into a refusal."""
    with _told(target, "it cannot be written"):
        yield


@contextmanager
def reading(target: Path) -> Iterator[None]:
    """The same of a folder whose rows somebody else made, who lets nobody read them."""
    with _told(target, "it cannot be read"):
        yield


@contextmanager
def _told(target: Path, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        wrong = f"{what} ({error.strerror or error})"
        raise refuse(
            "data-cache",
            f"FACTORY_CACHE={target.parent.parent}",
            wrong,
            because="prepared rows are kept there, so that they are read as they are needed and made only once",
            fix="free space, or set FACTORY_CACHE to a folder that can be written",
            machine=True,
        ) from error


def is_whole(folder: Path) -> bool:
    """Whether it can be read, and its media are still those that were counted in tokens."""
    index = _index(folder)
    if index is None or _looks(index["files"]) != index["looks"]:
        return False
    files = ((folder / name, size) for name, size in index["sizes"].items())
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _looks(files: list[str]) -> str:
    """A hash of the files' sizes and times of change, those that are not there included."""
    found = hashlib.sha256()
    for file in files:
        state = None
        with suppress(OSError, ValueError):  # of a name that no file has: its row is bad, and no more
            state = path.stat() if (path := file_of(file)).is_file() else None
        found.update(repr((file, state and (state.st_size, state.st_mtime_ns))).encode(errors="surrogatepass"))
    return found.hexdigest()


def _index(folder: Path) -> dict[str, Any] | None:
    """None where it is not there, or is not what was written: a damaged disk makes the rows anew, and ends nothing."""
    try:
        found = json.loads((folder / _INDEX).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS else None


@dataclass(frozen=True, slots=True)
class Side:
    """One row's tokens: ids (n), spans (k, 2) and weights (k); `asked` and `prompt` as in `Tokens`."""

    ids: NDArray[np.int32]
    spans: NDArray[np.int32]
    weights: NDArray[np.float32]
    asked: tuple[int, int] = (0, 0)
    prompt: int = 0


class Prepared:
    """A source's encoded rows, mapped. Numbers of rows are places here; `rows` says where they stood in the source."""

    def __init__(self, folder: Path):
        import pyarrow as pa

        index = _index(folder)
        assert index is not None
        self.folder, self.counts = folder, index["counts"]
        shards = [pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in index["sizes"]]
        self._table = pa.concat_tables(shards) if shards else schema().empty_table()
        self._lists: dict[str, _Lists] = {}

    def __len__(self) -> int:
        return self._table.num_rows

    def _column(self, name: str) -> NDArray[Any]:
        column = self._table.column(name)
        parts = [_view(chunk) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, _DTYPES[str(column.type)]), *parts])

    def _list(self, name: str) -> "_Lists":
        if name not in self._lists:
            self._lists[name] = _Lists(self._table.column(name).chunks)
        return self._lists[name]

    @cached_property
    def digests(self) -> Ranks:
        parts = [
            np.frombuffer(chunk.buffers()[1], "<u8", len(chunk) * 2, chunk.offset * DIGEST_BYTES)
            for chunk in self._table.column("digest").chunks
            if len(chunk)
        ]
        return np.concatenate([np.zeros(0, np.uint64), *parts]).reshape(-1, 2)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return self._list("ids").lengths

    @cached_property
    def rejected_lengths(self) -> NDArray[np.int64]:
        return self._list("rejected_ids").lengths

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        return self._column("row")

    @cached_property
    def cut(self) -> NDArray[np.int64]:
        """Tokens that truncation took from each row."""
        return self._column("cut").astype(np.int64) + self._column("rejected_cut")

    @cached_property
    def open_ended(self) -> NDArray[np.bool_]:
        """Whether truncation took an answer's end."""
        return (self._column("open") | self._column("rejected_open")).astype(np.bool_)

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """Whether a text of the row spells a special token."""
        return (self._column("special") | self._column("rejected_special")).astype(np.bool_)

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        """1 wanted, 0 not, -1 of rows without a label."""
        return self._column("label")

    def side(self, row: int, *, rejected: bool = False) -> Side:
        side = _SIDES[rejected]
        ids, spans, weights, asked = (self._list(side + name)[row] for name in ("ids", "spans", "weights", "asked"))
        start, end, prompt = asked.tolist()
        return Side(ids, spans.reshape(-1, 2), weights, (start, end), prompt)

    def label(self, row: int) -> bool:
        label = self._table.column("label")[row].as_py()
        assert label >= 0, "only labelled rows have a label"
        return bool(label)

    def media(self, row: int) -> tuple[Medium, ...]:
        found = self._table.column("media")[row].as_py()
        return tuple(map(Medium, found[::2], found[1::2]))

    def trained(self, *, rejected: bool = False) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of each row: its trained tokens, and whether its first token is one of them."""
        side = _SIDES[rejected]
        return _trained(self._list(side + "spans"), self._list(side + "weights"))


class _Lists:
    """A column of lists, as views of the mapped files."""

    def __init__(self, chunks: list[Any]):
        chunks = [chunk for chunk in chunks if len(chunk)]
        self.offsets = [_view(chunk.offsets) for chunk in chunks]
        self.values = [_view(chunk.values) for chunk in chunks]
        self.starts = np.concatenate([[0], np.cumsum([len(chunk) for chunk in chunks])]).astype(np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for offsets in self.offsets)]).astype(np.int64)

    def __getitem__(self, row: int) -> NDArray[Any]:
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        at, offsets = row - self.starts[chunk], self.offsets[chunk]
        return self.values[chunk][offsets[at] : offsets[at + 1]]


def _view(numbers: Any) -> NDArray[Any]:
    """An Arrow array without gaps, as it lies. Its own `to_numpy` imports pandas: 35 MiB and 0.15 s for nothing."""
    kind = np.dtype(_DTYPES[str(numbers.type)])
    if not len(numbers):
        return np.zeros(0, kind)
    return np.frombuffer(numbers.buffers()[1], kind, len(numbers), numbers.offset * kind.itemsize)


def _trained(spans: _Lists, weights: _Lists) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    counts, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    for offsets, values, factors in zip(weights.offsets, spans.values, weights.values, strict=True):
        ends = values.reshape(-1, 2)
        sizes = np.where(factors > 0, ends[:, 1] - ends[:, 0], 0).astype(np.int64)
        sums = np.concatenate([[0], np.cumsum(sizes)])
        counts.append(sums[offsets[1:]] - sums[offsets[:-1]])
        zeros = np.concatenate([[0], np.cumsum((ends[:, 0] == 0) & (sizes > 0))])
        firsts.append(zeros[offsets[1:]] > zeros[offsets[:-1]])
    return np.concatenate(counts), np.concatenate(firsts)
