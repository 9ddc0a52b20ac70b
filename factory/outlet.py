"""Standard output and standard error, which may be closed from the start, or lose who reads them: a pipe's reader
(`| head`), a terminal, a disk that is full.

A command whose work is more than what it prints goes on without; one that only prints ends.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast


class Unread(BaseException):  # no Exception: what tells of mistakes of any kind would tell of this as one
    """Standard output cannot be written, and there is nothing else to do."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


class Outlet:
    """A text stream that calls `on_loss` when it cannot be written, and takes all there is from then on."""

    def __init__(self, stream: Any, on_loss: Callable[[OSError], None]):
        self._stream, self._on_loss = stream, on_loss
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._losing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _to_nowhere(self._stream)
            if self.lost is None:
                self.lost = error
                self._on_loss(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def loss(stream: Any) -> OSError | None:
    """Why the stream is not written any more, where it is an outlet, or writes into one."""
    return getattr(stream, "lost", None)


@contextmanager
def outlets(*, goes_on: bool) -> Iterator[None]:
    """Standard output and standard error as outlets. Where it does not go on, a loss of the output raises Unread."""
    out, err = _outlet(sys.stdout, _told if goes_on else _ended), _outlet(sys.stderr, lambda _: None)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            with suppress(Unread):  # the interpreter's end would tell of what is left to be written
                out.flush()


def _outlet(stream: IO[str], on_loss: Callable[[OSError], None]) -> IO[str]:
    """One that is an outlet stays what it is: a job of a sweep in the sweep's own process.

    A letter that a terminal's encoding lacks becomes an escape, as Python has it on standard error: it ends no run.
    """
    if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return stream if isinstance(stream, Outlet) else cast(IO[str], Outlet(stream, on_loss))


def _told(error: OSError) -> None:
    why = f"Standard output cannot be written ({error.strerror})"
    print(f"{why}: nothing more is printed. The command goes on, and Ctrl-C stops it.", file=sys.stderr)


def _ended(error: OSError) -> None:
    raise Unread(error)


def _to_nowhere(stream: Any) -> None:
    """What it still holds can be written then too, and what other code writes to the descriptor."""
    with suppress(OSError, ValueError):  # one that has no descriptor raises both in one
        number = stream.fileno()
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), number)


def open_closed() -> None:
    """Opens what was closed (`>&-`) as `> /dev/null` would: Python has no stream for it, and the next file that is
    opened would get its number.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115  it stays
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
