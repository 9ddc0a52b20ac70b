"""The program. What the doctor examines may be what keeps the rest from being imported: then it starts without."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from factory.outlet import open_closed
from factory.stopping import answer, asking
from factory.tied import tie

INTERRUPTED = 128 + signal.SIGINT
_at_the_end: list[Callable[[], None]] = []


def main() -> int:
    atexit.register(_deaf)  # the first that is registered runs last
    open_closed()
    # until a verb says otherwise all end it as Ctrl-C does
    answer(
        signal.default_int_handler, [number for number in asking() if signal.getsignal(number) is not signal.SIG_IGN]
    )
    try:
        tie()
        return _settled(_run())
    except KeyboardInterrupt:  # while the verbs were still being imported
        print("Interrupted.", file=sys.stderr)
        return _settled(INTERRUPTED)


def _settled(code: int) -> int:
    """All is done: a signal while threads and libraries come to their end cuts them off, with the code of what was."""

    def end(*_: int | FrameType | None) -> None:
        with suppress(OSError, RuntimeError):  # nobody reads them any more, or they are being flushed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    answer(end)
    if code == INTERRUPTED:  # one that passed through `exec` of a text has Python kill itself at its end (main.c)
        _at_the_end.append(end)
    return code


def _deaf() -> None:
    """The interpreter's own end, which handles no signal any more, would have each kill it."""
    for number in asking():
        signal.signal(number, signal.SIG_IGN)
    for end in _at_the_end:
        end()


def _run() -> int:
    try:
        from factory.cli import main as cli
    except Exception as error:  # a broken library may raise anything
        if sys.argv[1:2] == ["doctor"]:
            from factory.doctor import main as doctor

            return doctor(sys.argv[2:])
        print(f"{error}\n`python -m factory doctor` tells what is broken.", file=sys.stderr)
        return 1
    return cli()


if __name__ == "__main__":
    raise SystemExit(main())
