"""A process whose large blocks lie apart (heap.c): how it is started, and what it forgets."""

import os
from contextlib import suppress
from pathlib import Path

from factory.native import build

_PRELOADED = "LD_PRELOAD"


def apart() -> dict[str, str]:
    """What its environment needs; nothing where the library cannot be made, as the process itself will say.

    A user's own library there goes before: it may be an allocator.
    """
    with suppress(build.NotBuiltError):
        return {_PRELOADED: str(build.heap())}
    return {}


def forget() -> None:
    """What the process starts has memory as it comes."""
    if Path(os.environ.get(_PRELOADED, "")).name.startswith(build.HEAP):
        del os.environ[_PRELOADED]
