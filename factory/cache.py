"""The user's cache folder: what is made once and can be made again."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from secrets import token_hex

from factory import locks

CONVERTED = re.compile("-[0-9a-f]{12}$")  # ends the name of the folder that a GGUF file was converted to


def folder() -> Path:
    """$FACTORY_CACHE, or `factory` in the system's."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "factory"
    return Path(os.environ.get("FACTORY_CACHE") or default)


@contextmanager
def making(
    target: Path,
    is_whole: Callable[[Path], bool],
    writing: Callable[[Path], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Path | None]:
    """A folder beside `target`, which takes its place if all goes well; None where another process was sooner.

    Where the file system has no locks several may be at it: the first one's stays, as others may read it by then.
    `writing` tells what goes wrong on the disk in its own words.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    with lock:
        alone = locks.lock(lock)
        if is_whole(target):
            yield None
            return
        if alone:  # else they may be of processes that write them
            for left in target.parent.glob(f".{target.name}.[0-9]*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}-{token_hex(4)}")  # another machine may have the pid
        try:
            with writing(target):
                aside.mkdir()
            yield aside
            with writing(target):
                _put(aside, target, is_whole)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, target: Path, is_whole: Callable[[Path], bool]) -> None:
    try:
        aside.rename(target)
    except OSError:  # something lies there
        if not is_whole(target):
            raise
