"""Sends what a run's folder holds and its tracking has not, in batches; what arrived is noted after each of them.

Whatever fails in between is sent again: the tools know a record that they have by its name, step and time.
"""

import importlib
import time
from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path
from typing import Any, Protocol

from factory.plan.plan import Plan
from factory.run.folder import RunFolder
from factory.tracking.ledger import Ledger, counts, parsed, told
from factory.tracking.spec import TOOLS

_PLACE = ("step", "time", "seconds")  # of a line in metrics.jsonl: its place, not what was measured
_UNKNOWN = ("tokens_per_second",)  # null there is a number that nobody has; elsewhere one that was not finite
_PART = 2**20  # bytes of a file that are read at a time
_BATCH = 1000  # values in one request at most, as MLflow allows
Line = dict[str, Any]


class Sink(Protocol):
    """One run in a tool. `ledger.run_id` is set by opening it. Raises whatever its library does."""

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger) -> None: ...
    def last_step(self) -> int:
        """Of the metrics that the tool has."""
        ...

    def describe(self) -> None: ...
    def log(self, step: int, when: float, values: dict[str, float]) -> None:
        """Takes values; they may wait for `flush`."""
        ...

    def flush(self) -> None:
        """Returns when what was taken has arrived."""
        ...

    def finish(self, report: dict[str, Any] | None) -> Iterator[None]:
        """Yields when something of it has arrived."""
        ...


class Growing:
    """Reads what a file of JSON lines has gained, a part at a time: an outage of days fits no memory."""

    def __init__(self, path: Path):
        self._path, self._at = path, 0

    def lines(self) -> list[Line]:
        """The next whole lines; none at the end, or where there is no file yet."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                whole, end, _ = file.read(_PART).rpartition(b"\n")
        except OSError:
            return []
        self._at += len(whole) + len(end)
        return parsed(whole)


class Delivery:
    """Of one run. `moved` is when something last arrived, by time.monotonic()."""

    def __init__(self, plan: Plan, folder: RunFolder, ledger: Ledger):
        self.plan, self.folder, self.ledger = plan, folder, ledger
        self.moved = time.monotonic()
        self._metrics, self._system = Growing(folder.metrics), Growing(folder.system)
        self._lines, self._samples = list[Line](), list[tuple[int, Line]]()  # read and not yet delivered
        self._read = 0  # lines of system.jsonl
        self._sink: Sink | None = None
        self._by_another = ledger.run_id is not None  # process, which may have been killed before it could note

    def send(self) -> None:
        """What is new."""
        try:
            _raised(self._send())
        except BaseException:
            self._sink = None  # what it holds may be in any state: the next time it is opened anew
            raise

    def finish(self, report: dict[str, Any] | None) -> None:
        """What is new, and how the run ended. The report says there that all has arrived: where it is, that is so."""
        try:
            problem = self._send()
            sent, unsent = counts(self.ledger, self.folder)
            all_told = told(self.ledger, sent + unsent, 0)
            for _ in self._opened().finish(None if report is None else {**report, "tracking": all_told}):
                self.moved = time.monotonic()
            _raised(problem)
        finally:
            self._sink = None
        self._note(result=True)

    def _send(self) -> Exception | None:
        """Returns why the run's description did not arrive, if so."""
        ledger, problem = self.ledger, None if self.ledger.described else self._described()
        while self._more_lines():
            for batch in _batches(self._lines):
                for line in batch:
                    self._opened().log(line["step"], line["time"], values_of(line))
                self._opened().flush()
                self._note(step=batch[-1]["step"])
        while self._more_samples():
            for batch in _batches([line for _, line in self._samples]):
                for number, line in enumerate(batch, start=ledger.samples):
                    self._opened().log(number, line["time"], line["values"])
                self._opened().flush()
                self._note(samples=ledger.samples + len(batch))
        return problem

    def _described(self) -> Exception | None:
        """The files of it may have a store of their own, which is closed to us: no curve waits for that."""
        sink = self._opened()
        try:
            sink.describe()
        except Exception as error:  # whatever a store may raise
            return error
        self._note(described=True)
        return None

    def _more_lines(self) -> bool:
        """Whether there are any to deliver; those of an older attempt, which the tool has, are passed over."""
        while True:
            if self._lines:  # kept where the tool cannot be opened: the file gives them once
                self._opened()  # which may know of more than the ledger does
            self._lines = [line for line in self._lines if line["step"] > self.ledger.step]
            if self._lines:
                return True
            if not (found := self._metrics.lines()):
                return False
            self._lines = found

    def _more_samples(self) -> bool:
        while True:
            self._samples = [each for each in self._samples if each[0] >= self.ledger.samples]
            if self._samples:
                return True
            if not (found := self._system.lines()):
                return False
            self._samples = list(enumerate(found, start=self._read))
            self._read += len(found)

    def _opened(self) -> Sink:
        if self._sink is None:
            module, _, name = TOOLS[self.plan.settings.tracking.tool].sink.partition(":")
            made: Sink = getattr(importlib.import_module(module), name)(self.plan, self.folder, self.ledger)
            if self._by_another:
                self.ledger.step = max(self.ledger.step, made.last_step())
                self._by_another = False
            self._sink = made
            self._note()
        return self._sink

    def _note(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.ledger, name, value)
        self.ledger.write(self.folder)
        self.moved = time.monotonic()


def _raised(problem: Exception | None) -> None:
    if problem is not None:
        raise problem


def values_of(line: Line) -> dict[str, float]:
    """What was measured at a step."""
    return {
        name: nan if value is None else value
        for name, value in line.items()
        if name not in _PLACE and not (name in _UNKNOWN and value is None)
    }


def _batches(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Whole lines: what arrives of a step arrives together."""
    batch, size = list[Line](), 0
    for line in lines:
        width = len(line.get("values", line))
        if batch and size + width > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += width
    if batch:
        yield batch
