"""Peak memory of a stretch of the run: resident memory of a CPU process, allocated memory of a GPU."""

import ctypes
import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
# in what the libraries say: torch on a CPU, on a GPU, safetensors, and glibc as it loads a library
_EXHAUSTED = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "bad_alloc",
    "cannot allocate memory for thread-local data",
)


def reset_peak(device: str) -> None:
    """Begins a stretch: what earlier ones freed goes back to the system first, so that a peak is the stretch's own."""
    give_back()
    if device == "cuda":
        if "torch" in sys.modules:
            import torch

            torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        # writing 5 resets VmHWM to the present size (proc_pid_clear_refs(5))
        with suppress(OSError):  # where a sandbox forbids it, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """What is free goes back to the system: glibc keeps it (run/launch.py) until it is told to."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no such call, and keeps less
            ctypes.CDLL(None).malloc_trim(0)


def peak(device: str) -> int:
    """Bytes since `reset_peak`; where the system keeps no resettable mark, since the start of the process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if (marked := _mark(_STATUS)) is not None:
        return marked
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mark(status: Path) -> int | None:
    """The largest resident memory that a process's status tells of, in bytes; None where it tells of none."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def current(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss


def peak_of(pid: int) -> int:
    """Bytes of another process since its `reset_peak`, or now where the system keeps no mark; 0 once it is gone."""
    import psutil

    if (marked := _mark(Path(f"/proc/{pid}/status"))) is not None:
        return marked
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def library_pages() -> int | None:
    """Resident bytes of shared libraries' files, which nobody can tell beforehand; None where the system tells of none.

    Where a file lies in the system's cache in large pieces, as one does that was just written, a look at a part of it
    brings the whole piece.
    """
    import psutil

    if sys.platform != "linux":
        return None
    try:
        maps = psutil.Process().memory_maps()
    except psutil.Error:
        return None
    return sum(each.rss for each in maps if ".so" in Path(each.path).name)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, in whoever's words."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return said_so(str(error))


def said_so(text: str) -> bool:
    """Whether a library's words are of memory that there was not."""
    return any(words in text for words in _EXHAUSTED)
