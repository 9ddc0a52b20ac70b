"""What a case may not do, and how it is found out."""

import faulthandler
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 10  # of CPU time; by the clock, which a busy machine and a wait both let run, three times as many
BYTES = 2 * 10**9  # beside what is there before
_STUCK = 60  # seconds: a loop in C hears no alarm
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "os.startfile")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
_CANARY = "fuzz_canary"


class Broken(BaseException):
    """A rule was broken; nothing that a case catches."""


class _Watch:
    """What the audit hook, which stays for good, looks at; `places` is None where nothing is watched."""

    places: tuple[str, ...] | None = None
    broken: str | None = None


@contextmanager
def guarded(*places: Path) -> Iterator[None]:
    """One case. Files may be written in these folders alone. Raises Broken, whoever swallowed it."""
    _install()
    _Watch.places, _Watch.broken = tuple(os.path.realpath(place) for place in places), None
    before = {number: signal.signal(number, _too_long) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _Watch.places = None
    if _Watch.broken:
        raise Broken(_Watch.broken)


@contextmanager
def little_memory() -> Iterator[None]:
    """Raises MemoryError where more than BYTES are asked for beside what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def never_stuck() -> Iterator[None]:
    """Ends the process, with what it was doing, where a case hears no alarm."""
    faulthandler.dump_traceback_later(_STUCK, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _too_long(*_: Any) -> None:
    _Watch.broken = f"it took {SECONDS} s"
    raise Broken(_Watch.broken)


_installed: list[bool] = []


def _install() -> None:
    if not _installed:
        sys.addaudithook(_audit)
        _installed.append(True)


def _audit(event: str, given: tuple[Any, ...]) -> None:
    if _Watch.places is None:
        return
    if event in _NETWORK:
        raise OSError("there is no network for a case")
    wrong = _wrong(event, given)
    if wrong is not None:
        _Watch.broken = wrong
        raise Broken(wrong)


def _wrong(event: str, given: tuple[Any, ...]) -> str | None:
    if event == "open":
        path, _, flags = given
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return _outside(path, "it writes") if writes else None
    if event in _CHANGES:
        return _outside(given[0], event)
    if event in _STARTS:
        return f"it starts a program: {event}{given!r:.200}"
    if event == "pickle.find_class":
        return f"it reads a pickle: {given!r:.200}"
    if event == "import" and re.match(_CANARY, str(given[0])):
        return f"it imports {given[0]}"
    return None


def _outside(path: Any, what: str) -> str | None:
    if not isinstance(path, str | bytes | os.PathLike):
        return None  # a descriptor
    name = os.path.realpath(os.fsdecode(path))
    if name == os.devnull or name.startswith("/proc/self/") or "__pycache__" in name:
        return None
    inside = any(name == place or name.startswith(f"{place}/") for place in _Watch.places or ())
    return None if inside else f"{what} {name}"
