"""What runs reached on this machine: `outputs/.calibration.json`, which every finished run adds to, and plans read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from factory import locks
from factory.config.refusal import UserError
from factory.config.values import record
from factory.estimate import speed
from factory.plan.facts import Machine, Measured
from factory.plan.plan import Plan, micro_batches
from factory.run.folder import RunFolder, write_whole
from factory.tracking.ledger import whole_lines

FILE = Path("outputs") / ".calibration.json"
_KEPT = 8  # runs of a device, a precision and a kind: the latest


def read(path: Path = FILE) -> tuple[tuple[Measured, ...], str | None]:
    """What was measured, the latest last, and what is wrong with the file: then it counts as if it were not there."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (), None
    except (OSError, ValueError) as error:
        return (), f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); it is left aside"
    try:
        found = tuple(record(Measured, run) for run in tree["runs"])
    except (ValueError, TypeError, KeyError):
        found = None
    if found is None or any(min(run.work, run.micro_batch, run.flops_per_second) <= 0 for run in found):
        return (), f"{path} is not what runs write there; it is left aside"
    return found, None


def add(run: Measured, path: Path = FILE) -> None:
    """Merged into what is there, by one process at a time. What cannot be written is no loss to the run."""
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            found, _ = read(path)
            same = [other for other in found if _of(other) == _of(run)][-(_KEPT - 1) :]
            others = [other for other in found if _of(other) != _of(run)]
            runs = [asdict(each) for each in (*others, *same, run)]
            write_whole(path, json.dumps({"runs": runs}, indent=1) + "\n")


def _of(run: Measured) -> tuple[str, str, str]:
    return run.device, run.precision, run.kind


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        locks.lock(lock)
        yield


def measured(plan: Plan, folder: RunFolder, machine: Machine) -> Measured | None:
    """Of a finished run, from its lines of metrics; None where there are no two, or where answers are sampled.

    The first step, in which kernels are compiled and memory is touched first, is told apart.
    """
    lines = whole_lines(folder.metrics)
    if len(lines) < 2 or plan.estimate.tokens is None:
        return None
    first, last = lines[0], lines[-1]
    seconds, tokens = last["seconds"] - first["seconds"], last["tokens"] - first["tokens"]
    if seconds <= 0 or tokens <= 0:
        return None
    work = speed.work(plan.estimate)
    return Measured(
        device=speed.device(machine, plan),
        precision=speed.precision(plan),
        kind=speed.kind(plan),
        work=work,
        micro_batch=tokens / (last["step"] - first["step"]) / micro_batches(plan.settings),
        flops_per_second=work * tokens / seconds,
        start_seconds=max(0.0, first["seconds"] - first["tokens"] * seconds / tokens),
    )
