"""The program. What the doctor examines may be what keeps the rest from being imported: then it starts without."""

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from factory.garbage import seldom_collected
from factory.outlet import open_closed
from factory.stopping import answer, asking
from factory.tied import tie


def main() -> int:
    atexit.register(_deaf)  # the first that is registered runs last
    open_closed()
    # until a verb says otherwise the others end it as Ctrl-C does
    answer(signal.default_int_handler, [number for number in asking() if number != signal.SIGINT])
    try:
        tie()
        return _settled(_run())
    except KeyboardInterrupt:  # while the verbs were still being imported
        print("Interrupted.", file=sys.stderr)
        return _settled(130)


def _settled(code: int) -> int:
    """All is done: a signal while threads and libraries come to their end cuts them off, with the code of what was."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        with suppress(OSError):  # nobody reads them any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    answer(end)
    return code


def _deaf() -> None:
    """The interpreter's own end, which handles no signal any more, would have each kill it."""
    for number in asking():
        signal.signal(number, signal.SIG_IGN)


def _run() -> int:
    try:
        with seldom_collected():
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
