"""The signals that ask a command to stop: Ctrl-C's, SIGTERM, and SIGHUP, which comes when its terminal is lost."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Ask = Callable[[int, FrameType | None], object]
_SOON = 0.01  # seconds


def asking() -> tuple[signal.Signals, ...]:
    """A hangup that is ignored asks for nothing: under nohup, and once it has come."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def answer(ask: Ask, numbers: Iterable[signal.Signals] | None = None) -> None:
    """Calls `ask` for each of the signals, of a hangup once; without `numbers` for all that ask."""

    def asked(number: int, frame: FrameType | None) -> None:
        if _names_a_part(frame):
            threading.Timer(_SOON, signal.pthread_kill, (threading.get_ident(), number)).start()
            return
        if number == signal.SIGHUP:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the kernel and the shell send it, each for itself
        ask(number, frame)

    for number in asking() if numbers is None else numbers:
        signal.signal(number, asked)


def _names_a_part(frame: FrameType | None) -> bool:
    """Whether a class is being made, and tells its parts their names: Python 3.11 makes a RuntimeError of whatever is
    raised there, which those take for it who catch mistakes of any kind. Imports make hundreds of classes.
    """
    while frame is not None:
        if frame.f_code.co_name == "__set_name__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def answered(ask: Ask, numbers: Iterable[signal.Signals] | None = None) -> Iterator[None]:
    """Calls `ask` in the body, and what was called before after it."""
    before = {number: signal.getsignal(number) for number in (asking() if numbers is None else numbers)}
    answer(ask, before)
    try:
        yield
    finally:
        for number in before.keys() & asking():
            signal.signal(number, before[number])
