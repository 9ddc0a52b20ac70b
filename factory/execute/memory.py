"""Peak memory of a stretch of the run: resident memory of a CPU process, allocated memory of a GPU."""

import ctypes
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def reset_peak(device: str) -> None:
    """Begins a stretch: what earlier ones freed goes back to the system first, so that a peak is the stretch's own."""
    _trim()
    if device == "cuda":
        if "torch" in sys.modules:
            import torch

            torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        # writing 5 resets VmHWM to the present size (proc_pid_clear_refs(5))
        with suppress(OSError):  # where a sandbox forbids it, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def _trim() -> None:
    """glibc keeps what was freed, as MALLOC_TRIM_THRESHOLD_ asks (run/launch.py), unless it is told to let go."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no such call, and keeps less
            ctypes.CDLL(None).malloc_trim(0)


def peak(device: str) -> int:
    """Bytes since `reset_peak`; where the system keeps no resettable mark, since the start of the process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if _STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def current(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss
