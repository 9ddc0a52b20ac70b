"""A process whose large blocks lie apart (heap.c): how it is started, and what it forgets."""

import os
from contextlib import suppress

from factory.native import build

_PRELOADED = "LD_PRELOAD"


def apart() -> dict[str, str]:
    """What its environment needs; nothing where the library cannot be made, as the process itself will say.

    A user's own libraries there go before: one may be an allocator, which has all blocks then.
    """
    with suppress(build.NotBuiltError):
        return {_PRELOADED: ":".join(filter(None, (os.environ.get(_PRELOADED), str(build.heap()))))}
    return {}


def forget() -> None:
    """What the process starts has memory as it comes, and the user's own libraries."""
    theirs, _, last = os.environ.get(_PRELOADED, "").rpartition(":")
    if not build.is_heap(last):
        return
    if theirs:
        os.environ[_PRELOADED] = theirs
    else:
        del os.environ[_PRELOADED]
