"""The signals that ask a command to stop: Ctrl-C's, SIGTERM, and SIGHUP, which comes when its terminal is lost."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

Ask = Callable[[int, FrameType | None], object]


def asking() -> tuple[signal.Signals, ...]:
    """A hangup that is ignored asks for nothing: under nohup, and once it has come."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


def answer(ask: Ask, numbers: Iterable[signal.Signals] | None = None) -> None:
    """Calls `ask` for each of the signals, of a hangup once; without `numbers` for all that ask."""

    def hung_up(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the kernel and the shell send it, each for itself
        ask(number, frame)

    for number in asking() if numbers is None else numbers:
        signal.signal(number, hung_up if number == signal.SIGHUP else ask)


@contextmanager
def answered(ask: Ask) -> Iterator[None]:
    """Calls `ask` in the body, and what was called before after it."""
    before = {number: signal.getsignal(number) for number in asking()}
    answer(ask)
    try:
        yield
    finally:
        for number in asking():
            signal.signal(number, before[number])
