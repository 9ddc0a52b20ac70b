"""Tables as text (csv, tsv), and plain text."""

import csv
import re
from collections.abc import Callable, Iterator
from typing import Any

from factory.config.refusal import refuse
from factory.data.read import wrong
from factory.data.read.opened import Skip, Stream
from factory.data.read.wrong import Broken

_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATORS = {"\t": "a tab", ";": "a semicolon", ",": "a comma", "|": "a bar"}
_LONGEST_CELL = 2**31 - 1  # characters: Python's own limit of 131,072 is for other files than these


def rows(delimiter: str) -> Callable[[Stream, Skip], Iterator[dict[str, Any]]]:
    """A reader of tables whose first row names the columns. Cells stay texts; an empty one is None.

    A line with more or fewer cells is there as Broken. Where the file's own lines end as those of Windows do, such ends
    in a cell are its writer's too, and read as \\n, as in plain text; in any other file they were put there.
    """

    def read(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(_LONGEST_CELL)
        table = csv.reader(_table_lines(stream), delimiter=delimiter, strict=True)
        names: list[str] = []
        before, windows = 0, stream.start().partition(b"\n")[0].endswith(b"\r")
        try:
            for cells in table:
                line, before = before + 1, table.line_num
                if not cells:
                    continue
                if windows and before > line:
                    cells = _mended(cells, stream)
                if not names:
                    names = _header(cells, stream, line)
                elif len(cells) != len(names) and before > line:  # a quote may hide whole rows in it
                    raise _uneven(cells, names, stream, line).error()
                elif skip.some(1):
                    continue
                elif len(cells) != len(names):
                    yield _uneven(cells, names, stream, line)
                else:
                    yield {name: cell or None for name, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise wrong.broken(stream.path, f"line {table.line_num or 1}: {error}") from None

    return read


def _mended(cells: list[str], stream: Stream) -> list[str]:
    found = [cell.replace("\r\n", "\n") for cell in cells]
    stream.mended.rows += found != cells
    return found


def _uneven(cells: list[str], names: list[str], stream: Stream, line: int) -> Broken:
    many = f"the row of line {line} has {len(cells)} cells where the header has {len(names)}"
    return Broken(stream.path, "\0".join(cells).encode(), "more or fewer cells than the header", many)


def _table_lines(stream: Stream) -> Iterator[str]:
    """Lines that may end with \\r alone too, as the csv module takes them."""
    for _, text in stream.texts():
        inside = text.removesuffix("\n").removesuffix("\r")
        yield from _LINES.findall(text) if "\r" in inside else (text,)


def _header(cells: list[str], stream: Stream, line: int) -> list[str]:
    other = next((mark for mark in _SEPARATORS if mark in cells[0] and len(cells) == 1), None)
    if other is not None:
        words = f"line {line}, the header, is one column, with {_SEPARATORS[other]} in its name"
        name = stream.path.name
        same = {"\t": name.replace(".csv", ".tsv"), ",": name.replace(".tsv", ".csv")}.get(other)
        fix = f"name it {same}" if same else "convert it to commas, as a spreadsheet does on export"
        raise refuse(
            "data-separator",
            f"path={stream.path}",
            words,
            because="the cells of a csv are set apart by commas, those of a tsv by tabs",
            fix=fix,
        )
    twice = next((name for name in cells if cells.count(name) > 1), None)
    if twice is not None:
        raise wrong.broken(stream.path, f"line {line}, the header, names the column {twice!r} twice")
    return cells


def documents(stream: Stream, skip: Skip) -> Iterator[dict[str, Any]]:
    """Texts, set apart by blank lines."""
    document: list[str] = []
    for _, line in stream.texts():
        if line.strip():
            document.append(line.rstrip("\r\n"))
        elif document:
            if not skip.some(1):
                yield {"text": "\n".join(document)}
            document = []
    if document and not skip.some(1):
        yield {"text": "\n".join(document)}
