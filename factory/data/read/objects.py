"""JSON: one object a line, or an array of objects that is read piece by piece."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.config.parsed import NamedTwice, once
from factory.config.refusal import UserError
from factory.data.read import wrong
from factory.data.read.opened import BOM, BUFFER, Skip, Stream
from factory.data.read.wrong import Broken

_NEAR_END = 64  # characters: a value that is cut there is one that goes on in the next chunk
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=once)
_GOES_ON = (b"[", b"{", b",", b":")  # how a line within an array ends


def rows(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
    """Of a .json file: an array, or lines, all of which must be objects."""
    start = stream.start().removeprefix(BOM).lstrip()
    if start.startswith(b"["):
        yield from _array(stream, skip)
        return
    for row in _lines(stream, skip):
        if isinstance(row, Broken):
            key = _rows_below(start.decode(errors="replace"))
            raise row.error() if key is None else wrong.wrapped(stream.path, key)
        yield row


def _rows_below(start: str) -> str | None:
    """The key of an object over several lines, which begins so, whose value is a list of rows."""
    at, key = 0, ""
    try:
        while start[at] in "{,":
            key, at = _DECODER.raw_decode(start, _after_space(start, at + 1))
            at = _after_space(start, _after_space(start, at) + 1)  # the colon
            if start[at] == "[" and wrong.is_row(_DECODER.raw_decode(start, _after_space(start, at + 1))[0]):
                return key
            at = _after_space(start, _DECODER.raw_decode(start, at)[1])
    except (ValueError, IndexError, RecursionError):
        pass
    return None


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def lines(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
    """Of a .jsonl file: one object a line, and Broken for a line that is none. Some such files are arrays in truth."""
    start = stream.start().removeprefix(BOM).lstrip()
    return _array(stream, skip) if start.startswith(b"[") and not _is_line(start) else _lines(stream, skip)


def _is_line(start: bytes) -> bool:
    """Whether what begins with a bracket is a broken line before good ones: one that ends, with an object after it."""
    first, *others = (line.strip() for line in start.splitlines())
    second = next(filter(None, others), b"")
    if first.endswith(_GOES_ON) or not second.startswith(b"{"):
        return False
    try:
        json.loads(second)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
    for number, raw in stream.lines():
        if raw.strip() and not skip.some(1):
            yield _row(stream.path, raw, number)


def _row(path: Path, raw: bytes, line: int) -> dict[str, Any]:
    """The line's object, or what is wrong with it."""
    try:
        text = raw.decode().rstrip("\r\n")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        words = wrong.byte_words(line, error.start + 1, raw[error.start])
        return Broken(path, raw, wrong.NOT_UTF8, words)
    except json.JSONDecodeError as error:
        return Broken(path, raw, "not JSON", f"line {line}, column {error.colno} is not JSON ({error.msg})")
    except (RecursionError, ValueError) as error:
        why = _unread(error)
        return Broken(path, raw, _reason(why), f"line {line} {why}")
    if not isinstance(value, dict):
        return Broken(path, raw, "not an object", f"line {line} is {wrong.kind(value)}, not an object")
    if why := wrong.unsound(value, text):
        return Broken(path, raw, _reason(why), f"line {line} {why}")
    return value


def _reason(why: str) -> str:
    """By which rows are counted: without what is in the one row."""
    return re.split(" after |: ", why)[0]


def _unread(error: RecursionError | ValueError) -> str:
    """What a decoder gives up at besides what is not JSON."""
    if isinstance(error, NamedTwice):
        return str(error)
    return "is nested too deeply" if isinstance(error, RecursionError) else "has a number of thousands of digits"


def _array(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
    window = _Window(stream)
    window.take()
    number = 0
    if window.next() == "]":
        window.take()
    else:
        while True:
            number += 1
            row = window.value()
            if not isinstance(row, dict):
                raise wrong.broken(stream.path, f"row {number} is {wrong.kind(row)}, not an object")
            if not skip.some(1):
                yield row
            if window.next() not in (",", "]"):
                raise window.broken("Expecting ',' delimiter", window.at)
            if window.take() == "]":
                break
    if window.next():
        raise window.broken("Extra data", window.at)


class _Window:
    """The part of the file's text that is being read. Its size is a chunk, or twice the largest row."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.text = ""
        self.at = 0
        self.line = 1  # of the window's start
        self.column = 0  # characters of that line before the window
        self.ended = False
        self._undecoded = stream.chunk(len(BOM), 1).removeprefix(BOM)
        self._byte_line, self._byte_column = 1, 0  # of what is not decoded yet

    def next(self) -> str:
        """The next character that is no space, still to be taken; nothing at the end."""
        while True:
            self.at = _after_space(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self) -> str:
        found = self.next()
        self.at += 1
        return found

    def value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - _NEAR_END or error.msg.startswith("Unterminated string")
                if cut and self.more():
                    continue
                raise self.broken(error.msg, error.pos) from None
            except (RecursionError, ValueError) as error:
                raise self._unsound(_unread(error)) from None
            if end == len(self.text) and self.more():  # a number may go on
                continue
            if why := wrong.unsound(value, self.text[self.at : end]):
                raise self._unsound(why)
            self.at = end
            return value

    def _unsound(self, why: str) -> UserError:
        return wrong.broken(self.stream.path, f"the row that starts in line {self._place(self.at)[0]} {why}")

    def more(self) -> bool:
        """Reads on, forgetting what was taken. Whether there was more."""
        if self.ended:
            return False
        self.line, self.column = (place := self._place(self.at))[0], place[1] - 1
        rest = self.text[self.at :]
        raw = self.stream.chunk(max(BUFFER, len(rest)), self.line)
        self.ended = not raw
        self.text, self.at = rest + self._decode(self._undecoded + raw), 0
        return True

    def _decode(self, raw: bytes) -> str:
        try:
            text, length = codecs.utf_8_decode(raw, "strict", self.ended)
        except UnicodeDecodeError as error:
            line = self._byte_line + raw.count(b"\n", 0, error.start)
            newline = raw.rfind(b"\n", 0, error.start)
            column = error.start - newline + (self._byte_column if newline < 0 else 0)
            raise wrong.not_utf8_at(self.stream.path, line, column, raw[error.start]) from None
        newline = raw.rfind(b"\n", 0, length)
        self._byte_line += raw.count(b"\n", 0, length)
        self._byte_column = length - newline - 1 + (self._byte_column if newline < 0 else 0)
        self._undecoded = raw[length:]
        return text

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a place in the window."""
        newline = self.text.rfind("\n", 0, at)
        return self.line + self.text.count("\n", 0, at), at - newline + (self.column if newline < 0 else 0)

    def broken(self, message: str, at: int) -> UserError:
        line, column = self._place(at)
        return wrong.broken(self.stream.path, f"line {line}, column {column} is not JSON ({message})")
