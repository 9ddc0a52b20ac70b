"""How a run's threads wait for each other (OpenMP's, of which torch starts one a core).

One that sleeps must be woken, at each of a step's thousands of operations; one that spins is there at once, and takes
its core from whoever else needs it. So where the cores were idle before the run they spin for as long as OpenMP has it
by itself (libgomp: some 7 ms), else never (OMP_WAIT_POLICY). Cores that become busy later make such a run slower than
one that sleeps: what is set by hand decides (both measured in docs/measurements.md).
"""

import os

import psutil

_LOOKED = 0.1  # seconds
_TAKEN = 0.5  # of a core by others, at most, where threads spin


def waiting(threads: int) -> dict[str, str]:
    """The environment of a process of so many threads, beside what is set by hand."""
    spinning = threads > 1 and _idle() >= threads - _TAKEN
    return {} if spinning else {"OMP_WAIT_POLICY": "PASSIVE"}


def _idle() -> float:
    """Cores that nobody uses now, of those that this process may use."""
    busy = psutil.cpu_percent(_LOOKED, percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(busy))
    return sum(1 - busy[core] / 100 for core in mine if core < len(busy))
