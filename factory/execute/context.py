"""What every step of a running plan shares: the plan, the folder, and how to tell what happens."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from factory.config.redact import without_secrets
from factory.execute import memory
from factory.execute.heard import Heard
from factory.plan.plan import Plan
from factory.ranks.ways import Way
from factory.ranks.world import World
from factory.run.folder import RunFolder, unwritable
from factory.stopping import answer

_PROGRESS_EVERY = 0.2  # seconds
STARTED = "FACTORY_STARTED"  # when the command, or a sweep's job, began: of time.monotonic(), which no clock moves


class Interrupted(BaseException):  # no Exception: what tells of mistakes of any kind would tell of this as one
    """The user asked to stop; what can be continued from is saved."""


@dataclass(slots=True)
class Run:
    plan: Plan
    folder: RunFolder
    resume_from: Path | None
    world: World = field(default_factory=World)
    way: Way = field(default_factory=Way)  # how the model is called
    stopping: bool = False  # asked to, of this process alone: `asked_to_stop` is of all
    memory_by_step: dict[str, int] = field(default_factory=dict)
    peak_before: int = 0  # of memory, while training, of the processes that this one goes on for
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    now: str = "start"  # the step that runs
    at_once: bool = False  # whether a signal ends what runs where it is: it has nothing to save
    bad_updates: dict[str, Any] | None = None  # of the report, however the run ends
    heard: Heard = field(default_factory=Heard)  # what libraries warned of
    _shown: float = 0.0

    def emit(self, event: str, **values: Any) -> None:
        if self.world.leads:
            told = without_secrets(values)
            append(self.folder.events, {"event": event, "time": round(time.time(), 3), **told})

    def log(self, line: dict[str, Any]) -> None:
        """A line of metrics."""
        if self.world.leads:
            append(self.folder.metrics, line)

    def progress(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._shown > _PROGRESS_EVERY:
            self._shown = now
            self.emit("progress", name=name, done=done, total=total)

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.checks[name] = {"passed": passed, "detail": detail}

    def asked_to_stop(self) -> bool:
        """Whether any rank was: all of them learn of it at the same place."""
        return self.world.any(self.stopping and not self.world.follows)

    def stop_if_asked(self) -> None:
        if self.asked_to_stop():
            raise Interrupted

    @contextmanager
    def ended_at_once(self) -> Iterator[None]:
        """A signal that asks to stop raises Interrupted in here too: what is waited for may never come."""
        before, self.at_once = self.at_once, self.world.size == 1
        try:
            self.stop_if_asked()
            yield
        finally:
            self.at_once = before

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Tells a step's start and end, with its own peak of memory, which is the largest of all ranks."""
        self.stop_if_asked()
        device = self.plan.steps.load.device
        start = time.monotonic()
        memory.reset_peak(device)
        self.emit("start", name=name)
        self.now, self.at_once = name, name != "train" and self.world.size == 1  # ranks stop at the same place
        try:
            yield
        finally:
            self.at_once = False
        self.memory_by_step[name] = self.peak(name)
        self.emit("end", name=name, seconds=round(time.monotonic() - start, 3), memory=self.memory_by_step[name])

    def peak(self, name: str) -> int:
        """Of memory, up to now, of the step that runs."""
        before = self.peak_before if name == "train" else 0
        return max(before, self.world.most(memory.peak(self.plan.steps.load.device)))

    def listen(self) -> None:
        """What asks for it ends the run: after the training step, once it is saved; in the other steps at once."""

        def ask(_signal: int, _frame: FrameType | None) -> None:
            self.stopping = True
            if self.at_once:
                raise Interrupted

        answer(ask)


def append(path: Path, line: dict[str, Any]) -> None:
    """One JSON line in one write, so that a reader or a kill never sees half of it as whole."""
    try:
        with path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise unwritable(path, error) from None


def age_of_command() -> float:
    """Seconds since the command was started, or a sweep's job."""
    if (started := os.environ.get(STARTED)) is not None:
        return time.monotonic() - float(started)
    return age_of(os.getppid())  # nobody says it: a rank of an outer launcher


def age_of(process: int) -> float:
    """Seconds since a process was started: on Linux by the time since the boot, which no clock moves."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        import psutil

        return time.time() - psutil.Process(process).create_time()
    ticks = int(stat.rpartition(")")[2].split()[19])  # proc(5): the 22nd field; the second may hold blanks
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
