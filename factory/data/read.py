"""Files to rows, strictly: what cannot be read is named by line and column."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.refusal import UserError, refuse

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".txt")


def rows(path: Path) -> Iterator[Row]:
    """The rows of a json, jsonl or txt file (documents of a txt are set apart by blank lines).

    Raises UserError where the file is not UTF-8, not JSON, or holds something other than objects.
    """
    if path.suffix == ".txt":
        yield from ({"text": text} for text in _documents(path))
        return
    found = _lines(path) if has_lines(path) else _array(path)
    for number, row in found:
        if not isinstance(row, dict):
            raise _broken(path, f"row {number} is {_name(row)}, not an object")
        yield row


def has_lines(path: Path) -> bool:
    """Whether rows can be read one by one: a JSON array, or a txt, is read whole."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    return path.suffix != ".txt" and not start.startswith(b"[")


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            text = _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, path, number)
            if text.strip():
                yield number, _parse(text.rstrip("\r\n"), path, number)


def _array(path: Path) -> Iterator[tuple[int, Any]]:
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, error.start - raw.rfind(b"\n", 0, error.start), raw[error.start]) from None
    yield from enumerate(_parse(text, path, 1), start=1)


def _documents(path: Path) -> Iterator[str]:
    document: list[str] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, path, number)
            if line.strip():
                document.append(line.rstrip("\r\n"))
            elif document:
                yield "\n".join(document)
                document = []
    if document:
        yield "\n".join(document)


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line, error.start + 1, raw[error.start]) from None


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise _broken(path, f"line {line + error.lineno - 1}, column {error.colno} is not JSON ({error.msg})") from None
    except RecursionError:
        raise _broken(path, f"line {line} is nested too deeply") from None
    except UnicodeEncodeError as error:
        before = error.object[max(0, error.start - 30) : error.start]
        raise _broken(path, f"there is half of a surrogate pair after {before!r}") from None
    except ValueError as error:  # a number of thousands of digits
        raise _broken(path, f"line {line}: {error}") from None


def _not_utf8(path: Path, line: int, column: int, byte: int) -> UserError:
    return refuse(
        "data-encoding", f"path={path}", f"line {line}, byte {column} (0x{byte:02X}) is not UTF-8", name=path.name
    )


def _broken(path: Path, wrong: str) -> UserError:
    return refuse("data-broken", f"path={path}", wrong)


def _name(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
