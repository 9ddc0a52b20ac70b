"""Parquet and Arrow files. What they hold is a row as Python values: bytes and times too, where their types say so."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from factory.config.refusal import UserError
from factory.data.read import wrong
from factory.data.read.opened import DAMAGE, Skip, compression, opened

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1000  # that are Python values at a time
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # without it, rows may be missing: what was cut between batches reads well


def parquet(path: Path, skip: Skip) -> Iterator[dict[str, Any]]:
    """Row groups before `skip` are not read."""
    number = 0
    with _read(path) as (source, place), _parquet(source) as file:
        for group in range(file.num_row_groups):
            promised = file.metadata.row_group(group).num_rows
            number += promised
            place["after"] = f"before row {number:,}"
            if skip.left >= promised:
                skip.some(promised)
                continue
            found = 0
            for batch in file.iter_batches(_ROWS, row_groups=[group]):
                batch.validate()
                found += batch.num_rows
                yield from _values(batch.slice(skip.some(batch.num_rows)), path)
            if found != promised:
                raise wrong.cut(path, f"row group {group + 1} has {found:,} rows and says {promised:,}")


def arrow(path: Path, skip: Skip) -> Iterator[dict[str, Any]]:
    number = 0
    with _read(path) as (source, place):
        for batch in _batches(source):
            start = skip.some(batch.num_rows)
            number += batch.num_rows
            place["after"] = f"before row {number:,}"
            if start < batch.num_rows:
                batch.validate(full=True)
            for first in range(start, batch.num_rows, _ROWS):
                yield from _values(batch.slice(first, _ROWS), path)


def parquet_count(path: Path) -> int:
    with _read(path) as (source, _), _parquet(source) as file:
        return file.metadata.num_rows


def arrow_count(path: Path) -> int:
    with _read(path) as (source, _):
        return sum(batch.num_rows for batch in _batches(source))


def _values(batch: "pyarrow.RecordBatch", path: Path) -> list[dict[str, Any]]:
    names = batch.schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise wrong.broken(path, f"it has the column {twice!r} twice")
    return values(batch)


def values(rows: "pyarrow.RecordBatch | pyarrow.Table") -> list[dict[str, Any]]:
    """The rows as Python values, without the nulls that Arrow adds: a column's objects have all the keys of any."""
    import pyarrow

    nested = [field.name for field in rows.schema if pyarrow.types.is_nested(field.type)]
    found = rows.to_pylist()
    for row in found:
        row.update((name, _said(row[name])) for name in nested)
    return found


def _said(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _said(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_said(part) for part in value]
    return value


def _parquet(source: "pyarrow.NativeFile | IO[bytes]") -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source)


def _batches(source: "pyarrow.NativeFile | IO[bytes]") -> Iterator["pyarrow.RecordBatch"]:
    """Of either kind: files, with an index at their end, and streams, as `datasets` writes them."""
    import pyarrow

    is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    source.seek(0)
    if is_file:
        reader = pyarrow.ipc.open_file(source)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        return
    source.seek(max(0, source.seek(0, os.SEEK_END) - len(_STREAM_END)))
    if source.read(len(_STREAM_END)) != _STREAM_END:
        raise EOFError("the stream has no end mark")
    source.seek(0)
    yield from pyarrow.ipc.open_stream(source)


@contextmanager
def _read(path: Path) -> Iterator[tuple["pyarrow.NativeFile | IO[bytes]", dict[str, str]]]:
    """The file, mapped or decompressed aside, and a note of the place that an error is told with."""
    import pyarrow

    place = {"after": "at its start"}
    try:
        if compression(path):
            with opened(path) as stream, tempfile.TemporaryFile() as aside:
                shutil.copyfileobj(stream.plain, aside)
                aside.seek(0)
                yield aside, place
        else:
            with pyarrow.memory_map(str(path)) as mapped:
                yield mapped, place
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise wrong.not_utf8(path, f"a text {place['after']} is not UTF-8 ({error.reason})") from None
    except (*DAMAGE, pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise wrong.damaged(path, error, place["after"]) from None
