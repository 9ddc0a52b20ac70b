"""The memory that the system grants a group of processes (a container, a job), and whom it ended for taking more."""

from collections.abc import Iterator
from pathlib import Path

_OWN, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# version 2 (one tree), version 1 (a tree of memory's own)
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")
_STATISTICS = ("memory.stat",)
_EVENTS = ("memory.events", "memory.oom_control")
_NO_LIMIT = 2**60  # bytes: how version 1 says it


def free() -> int | None:
    """Bytes that may still be taken: the least of the own group's and of those around it; None where there is no limit.

    What the kernel keeps of files in memory is given up when it is needed.
    """
    found = []
    for folder, limit in _limits():
        used = next((int(text) for text in _read(folder, _USED) if text.strip().isdigit()), 0)
        found.append(max(0, limit - max(0, used - _of_files(folder))))
    return min(found, default=None)


def limit() -> int | None:
    """Bytes that the own group and those around it may have together; None where there is no limit."""
    return min((most for _, most in _limits()), default=None)


def _limits() -> Iterator[tuple[Path, int]]:
    for folder in _groups():
        limit = next((int(text) for text in _read(folder, _LIMITS) if text.strip().isdigit()), _NO_LIMIT)
        if limit < _NO_LIMIT:
            yield folder, limit


def _of_files(folder: Path) -> int:
    found = numbers("".join(_read(folder, _STATISTICS)))
    return found.get("total_inactive_file", found.get("inactive_file", 0))  # version 1's total is of all below


def numbers(text: str) -> dict[str, int]:
    """Of lines of a name and a number."""
    lines = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


def kills() -> int:
    """How many processes of the own group were ended for lack of memory; 0 where the system does not count them."""
    for text in (text for folder in _groups() for text in _read(folder, _EVENTS)):
        if (counted := numbers(text).get("oom_kill")) is not None:
            return counted
    return 0


def _groups() -> Iterator[Path]:
    """The own group's folder, and those around it. Inside of a container its own may be the root."""
    try:
        lines = [line.split(":", 2) for line in _OWN.read_text().splitlines()]
    except OSError:
        return
    for _, kinds, path in lines:
        if kinds not in ("", "memory"):
            continue
        root = _ROOT / kinds
        folder = root / path.lstrip("/")
        while True:
            yield folder
            if folder == root:
                break
            folder = folder.parent


def _read(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        try:
            yield (folder / name).read_text()
        except OSError:
            continue
