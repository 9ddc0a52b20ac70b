"""How often Python looks for garbage in cycles, which costs more than it finds where much is made that stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_SELDOM = (50_000, 20, 50)  # new objects; of these rounds, one through the older objects; of those, one through all


_USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """From now on, in this process."""
    gc.set_threshold(*_SELDOM)


def collect_as_usual() -> None:
    gc.set_threshold(*_USUAL)


@contextmanager
def seldom_collected() -> Iterator[None]:
    before = gc.get_threshold()
    collect_seldom()
    try:
        yield
    finally:
        gc.set_threshold(*before)
