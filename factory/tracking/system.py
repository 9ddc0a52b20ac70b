"""What the machine does while a run goes on, a line every so many seconds in system.jsonl; under MLflow's own names."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil

from factory.config.refusal import UserError
from factory.config.settings import Tracking
from factory.execute.context import append
from factory.plan.inspect.machine import of_nvidia
from factory.run.folder import RunFolder

_MB = 1e6
_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"  # of nvidia-smi
_CARD = ("utilization_percentage", "memory_usage_megabytes", "memory_total_megabytes", "power_usage_watts")


class Sampler:
    """Looks at the machine in a thread of its own, so that a card's driver that hangs holds nobody up."""

    def __init__(self, folder: RunFolder, seconds: float):
        self._file, self._seconds = folder.system, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join(2)

    def _work(self) -> None:
        look = looking()
        while not self._over.wait(self._seconds):
            try:
                append(self._file, {"time": round(time.time(), 3), "values": look()})
            except UserError:  # a full disk: the run itself says so
                return


def watching(tracking: Tracking, folder: RunFolder) -> AbstractContextManager[Any]:
    """While a run goes on, where that is asked for."""
    return Sampler(folder, tracking.system_metrics_seconds) if tracking.system_metrics else nullcontext()


def looking() -> Callable[[], dict[str, float]]:
    """A function that returns what it is now. Rates and shares are since it was called last."""
    psutil.cpu_percent()
    start = psutil.net_io_counters()

    def look() -> dict[str, float]:
        memory, disk, net = psutil.virtual_memory(), psutil.disk_usage("."), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MB,
        }
        if start is not None and net is not None:
            found["network_receive_megabytes"] = (net.bytes_recv - start.bytes_recv) / _MB
            found["network_transmit_megabytes"] = (net.bytes_sent - start.bytes_sent) / _MB
        return {f"system/{name}": round(value, 3) for name, value in {**found, **dict(_cards())}.items()}

    return look


def _cards() -> Iterator[tuple[str, float]]:
    """Of NVIDIA's cards; what a card does not tell is left out."""
    for index, *told in of_nvidia(_QUERY):
        for name, value in zip(_CARD, told, strict=False):
            try:
                yield f"gpu_{index}_{name}", float(value)
            except ValueError:  # [N/A]
                continue
