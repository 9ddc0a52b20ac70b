"""Files of every kind, changed by chance, and what the plain libraries read of them: the reader must agree."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from fuzz.mutation import changed

from factory.config.refusal import UserError
from factory.data.read import Broken, rows

Rows = list[dict[str, Any]]
BAD = "a line that is no row"

ROWS: Rows = [
    {"instruction": f'Say {number} ü "q", x\ny', "input": "" if number % 2 else "b", "output": "ok " * number}
    for number in range(24)
]
NESTED: Rows = [
    {**row, "messages": [{"role": "user", "content": row["output"]}], "image": {"bytes": b"\xff\0", "path": None}}
    for row in ROWS
]
TABLE = pyarrow.Table.from_pylist(NESTED)


def written(delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(ROWS)
    return file.getvalue().encode()


def parquet(**options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, file, row_group_size=10, **options)
    return file.getvalue()


def arrow(new: Callable[..., Any]) -> bytes:
    file = io.BytesIO()
    with new(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=10)
    return file.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
SEEDS: dict[str, bytes] = {
    "a.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "b.json": json.dumps(ROWS).encode(),
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace(b"\n", b"\r\n\n"),
    "a.csv": written(","),
    "a.tsv": written("\t"),
    "a.txt": "one\ntwo ü\r\n\nthree\n\n \nfour".encode(),
    "a.parquet": parquet(),
    "b.parquet": parquet(compression="zstd", use_dictionary=False),
    "a.arrow": arrow(pyarrow.ipc.new_stream),
    "b.arrow": arrow(pyarrow.ipc.new_file),
}
SEEDS |= {
    "a.jsonl.gz": gzip.compress(SEEDS["a.jsonl"], mtime=0),
    "a.csv.bz2": bz2.compress(SEEDS["a.csv"]),
    "a.json.xz": lzma.compress(SEEDS["a.json"]),
    "a.txt.zst": pyarrow.compress(SEEDS["a.txt"], codec="zstd", asbytes=True),
    "a.parquet.gz": gzip.compress(SEEDS["a.parquet"], mtime=0),
}
NAMES = sorted(SEEDS)


def expected(name: str, content: bytes) -> Rows | None:
    """What the plain libraries read, or None where they refuse or the reader is stricter on purpose."""
    stem, _, suffix = name.rpartition(".")
    if suffix in DECOMPRESS:
        try:
            return expected(stem, DECOMPRESS[suffix](content))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            return None
    try:
        return list(READ[suffix](content))
    except (ValueError, RecursionError, csv.Error, OSError, pyarrow.ArrowException, AssertionError):
        return None


def _zstandard(content: bytes) -> bytes:
    return pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


_loads = partial(json.loads, object_pairs_hook=_once)


def _json(content: bytes) -> Rows:
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return [_object(_loads(line.decode())) for line in lines if line.strip()]
    return [_object(row) for row in _loads(content.decode("utf-8-sig"))]


def _jsonl(content: bytes) -> list[Any]:
    """The lines, BAD for each that is no object. What begins with a bracket is an array, unless a line stands there."""
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    array = bool(lines) and lines[0].lstrip().startswith(b"[")
    if array and (lines[0].rstrip()[-1:] in b"[{,:" or len(lines) == 1 or _line(lines[1], json.loads) == BAD):
        return _json(content)
    return [_line(line) for line in lines]


def _line(line: bytes, loads: Callable[[str], Any] = _loads) -> Any:
    try:
        return _object(loads(line.decode()))
    except (ValueError, RecursionError, AssertionError):
        return BAD


def _object(row: Any) -> dict[str, Any]:
    assert isinstance(row, dict)
    assert _depth(row) <= 100
    json.dumps(row, ensure_ascii=False).encode()
    return row


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max(map(_depth, children), default=0) + isinstance(value, dict | list)


def _csv(delimiter: str) -> Callable[[bytes], Iterator[dict[str, Any]]]:
    def read(content: bytes) -> Iterator[Any]:
        text = content.decode("utf-8-sig")
        assert "\0" not in text
        reader, before = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
        header: list[str] = []
        for row in reader:
            lines, before = reader.line_num - before, reader.line_num
            if row and not header:
                header = row
                assert len(set(header)) == len(header)
                assert len(header) > 1 or not set("\t;,") & set(header[0])  # another separator, which is refused
            elif row and len(row) == len(header):
                yield {name: cell or None for name, cell in zip(header, row, strict=True)}
            elif row:
                assert lines == 1
                yield BAD

    return read


def _txt(content: bytes) -> Iterator[dict[str, Any]]:
    text = content.decode("utf-8-sig")
    assert "\0" not in text
    for block in re.split(r"\n(?:[^\S\n]*\n)+", "\n\n" + "\n".join(map(_bare, text.split("\n"))) + "\n\n"):
        if block.strip():
            yield {"text": block}


def _bare(line: str) -> str:
    return line.rstrip("\r") if line.strip() else ""


def _parquet(content: bytes) -> Rows:
    return _as_written(pyarrow.parquet.read_table(io.BytesIO(content)))


def _arrow(content: bytes) -> Rows:
    is_file = content.startswith(b"ARROW1")
    reader = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(io.BytesIO(content))
    table = reader.read_all()
    table.validate(full=True)
    return _as_written(table)


def _as_written(table: pyarrow.Table) -> Rows:
    """Without the keys that Arrow gives an object since another row's has them."""
    return [{name: _own(value) for name, value in row.items()} for row in table.to_pylist()]


def _own(value: Any) -> Any:
    match value:
        case dict():
            return {key: _own(part) for key, part in value.items() if part is not None}
        case list() | tuple():
            return [_own(part) for part in value]
    return value


DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.decompress,
    "bz2": lambda content: bz2.BZ2File(io.BytesIO(content)).read(),  # which minds half a stream after a whole one
    "xz": lzma.decompress,
    "zst": _zstandard,
}
READ: dict[str, Callable[[bytes], Any]] = {
    "json": _json,
    "jsonl": _jsonl,
    "ndjson": _jsonl,
    "csv": _csv(","),
    "tsv": _csv("\t"),
    "txt": _txt,
    "parquet": _parquet,
    "arrow": _arrow,
}
# those whose two ways of reading, whole or in batches, do not mind the same damage
STRICTER = ("arrow", "parquet", "parquet.gz")


def check(seed: int, folder: Path) -> str:
    """Changes one file and reads it: `rows` or `refused`. Raises AssertionError where the libraries say otherwise."""
    name = NAMES[seed % len(NAMES)]
    content = changed(SEEDS[name], random.Random(seed))
    path = folder / name
    path.write_bytes(content)
    wanted = expected(name, content)
    try:
        found = [BAD if isinstance(row, Broken) else row for row in rows(path)]
    except UserError as error:
        assert wanted is None or name.endswith(STRICTER), f"seed {seed}, {name}: {error}"
        return "refused"
    if wanted is None and name.endswith(".parquet"):
        wanted = found[: pyarrow.parquet.read_metadata(path).num_rows]
    assert repr(found) == repr(wanted), f"seed {seed}, {name}: {len(found)} rows, not what its library reads"
    return "rows"
