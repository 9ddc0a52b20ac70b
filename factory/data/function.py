"""Rows that a Python function of the user's gives: `module:function`, called without arguments."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from factory.config import function
from factory.config.refusal import UserError, refuse

Row = dict[str, Any]
READ_WHOLE = 1000  # rows: of what gives more, planning asks for these alone


def rows(path: str, skip: int = 0) -> Iterator[Row]:
    """The function's rows from number `skip` on: those before are asked for and passed over. Raises UserError."""
    found = _checked(path, _result(path))
    return islice(found, skip, None)


class Looked(NamedTuple):
    """The first rows, at most READ_WHOLE; `total` is None where there are more and the result does not say how many.

    `sha256` is of the rows where these are all, else of the module's file: what that reads can change unseen, so that
    what is kept of the rows goes by their own `Sum`.
    """

    rows: list[Row]
    total: int | None
    sha256: str


class Sum:
    """A hash of the rows that have passed through it, their keys in the order that they stand in."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self._found.update(json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n")
            yield row

    def hexdigest(self) -> str:
        return self._found.hexdigest()


def _plain(value: Any) -> str:
    """Of an object that does not say what it holds its kind: its address is another each time."""
    own = type(value)
    silent = own.__str__ is object.__str__ and own.__repr__ is object.__repr__
    return own.__name__ if silent else str(value)


def look(path: str) -> Looked:
    """Calls the function, as planning and the check before a run do."""
    result = _result(path)
    found = list(islice(_checked(path, result), READ_WHOLE + 1))
    if len(found) <= READ_WHOLE:
        of_all = Sum()
        for _ in of_all.of(found):
            pass
        return Looked(found, len(found), of_all.hexdigest())
    module, _ = function.module_of(path)
    source = Path(module.__file__).read_bytes() if module.__file__ else b""
    total = len(result) if isinstance(result, list | tuple) else None
    return Looked(found[:READ_WHOLE], total, hashlib.sha256(path.encode() + b"\0" + source).hexdigest())


def _result(path: str) -> Iterable[Any]:
    """What the function returns."""
    result = function.called(path, "it raised", function.imported(path))
    if isinstance(result, str | bytes | dict) or not isinstance(result, Iterable):
        if inspect.iscoroutine(result):
            result.close()
        raise _wrong_rows(path, f"it returned {_named(result)}, nothing to take rows from")
    return result


def _checked(path: str, result: Iterable[Any]) -> Iterator[Row]:
    """The rows of a result, each of them a dict that could stand in a file."""
    iterator = function.called(path, "it raised", lambda: iter(result))
    end = object()
    number = 0
    while (row := function.called(path, f"it raised after {number:,} rows", lambda: next(iterator, end))) is not end:
        number += 1
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            columns = "" if not isinstance(row, dict) else " with names of columns that are no texts"
            raise _wrong_rows(path, f"row {number:,} is {_named(row)}{columns}")
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except (ValueError, RecursionError, TypeError) as error:
            raise _wrong_rows(path, f"row {number:,} could not stand in a file ({error})") from None
        yield row


def _wrong_rows(path: str, text: str) -> UserError:
    return refuse(
        "function-rows",
        f"path={path}",
        text,
        because="a function takes no arguments and gives rows, each a dict of columns",
        fix='give rows as in: yield {"text": "…"}',
    )


def _named(value: Any) -> str:
    return f"of type {type(value).__name__}"
