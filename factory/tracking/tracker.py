"""Follows a run for its tracking, in a thread of its own: neither a slow nor a lost server can touch the run."""

import os
import threading
import time
from contextlib import suppress
from typing import Any

from factory.config.redact import redacted
from factory.config.refusal import caused
from factory.plan.plan import Plan
from factory.run.folder import RunFolder
from factory.tracking import ledger
from factory.tracking.delivery import Delivery

_EVERY = 5.0  # seconds between two batches: MLflow takes half as long for a value of 500 as for one of 50
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds until a server that failed is asked again
_PATIENCE = 20.0  # seconds without anything that arrives, when the run is over; of a file on a busy machine, more
_PATIENCE_WITH_FILES = 120.0
_AGAIN = 5.0  # seconds to try again at the end, of a server that is not known to be lost
_LOST = 30.0  # seconds without an answer after which it is


class Tracker:
    """`problem` says what went wrong last, None when the last batch arrived."""

    def __init__(self, plan: Plan, folder: RunFolder):
        self.problem: str | None = None
        self._on = plan.settings.tracking.on
        self._where = plan.settings.tracking.uri or plan.settings.tracking.tool
        tracking = plan.settings.tracking
        remote = tracking.mode == "online" if tracking.tool == "wandb" else self._where.startswith("http")
        self._patience = _PATIENCE if remote else _PATIENCE_WITH_FILES
        self._folder = folder
        self._delivery = Delivery(plan, folder, ledger.of(plan.settings.tracking, folder))
        self._report: dict[str, Any] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: str | None = None
        self._failing: float | None = None  # since when, by time.monotonic()

    def wake(self) -> None:
        """There is something to send. The tool's library is imported only now, not while the run is starting."""
        if self._on and self._thread is None:
            book = self._delivery.ledger
            book.result, book.ended = False, None  # of the attempt before this one
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def news(self) -> str | None:
        """What a person should know now and was not told yet: that the server is lost, or there again."""
        problem, before = self.problem, self._told
        if (problem is None) == (before is None):
            return None
        self._told = problem
        if problem is None:
            return f"{self._where} answers again, and gets what it missed."
        return f"{self._where} cannot be reached ({problem}). What it misses is kept here and sent when it answers."

    def finish(self, report: dict[str, Any] | None) -> dict[str, Any] | None:
        """Sends the result, waits while anything arrives, and returns the report's `tracking`; None where it is off."""
        if not self._on:
            return None
        self.wake()
        self._delivery.ledger.ended = time.time()
        self._report = report
        asked = time.monotonic()
        self._over.set()
        assert self._thread is not None
        try:
            while self._thread.is_alive():
                self._thread.join(0.1)
                if time.monotonic() - max(asked, self._delivery.moved) > self._patience:
                    self.problem = f"no answer within {self._patience:.0f} s"
                    break
        except KeyboardInterrupt:  # who is tired of waiting
            self.problem = "interrupted while sending"
        book = self._delivery.ledger
        return ledger.told(book, *ledger.counts(book, self._folder), self.problem)

    def _work(self) -> None:
        with suppress(OSError):  # Linux alone gives a thread a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        pause = _FIRST_PAUSE
        while not self._over.is_set():
            arrived = self._tried()
            pause = _FIRST_PAUSE if arrived else min(2 * pause, _LONGEST_PAUSE)
            self._over.wait(_EVERY if arrived else pause / 2)
        lost = self._failing is not None and time.monotonic() - self._failing > _LOST
        last = time.monotonic() + (0 if lost else _AGAIN)
        pause = _FIRST_PAUSE / 2
        while not self._tried(over=True) and time.monotonic() + pause < last:
            time.sleep(pause)
            pause *= 2

    def _tried(self, *, over: bool = False) -> bool:
        """Whether all arrived."""
        try:
            if over:
                self._delivery.finish(self._report)
            else:
                self._delivery.send()
        except Exception as error:  # whatever a server or its database may raise: told, never fatal
            self.problem = said(error)
            self._failing = self._failing or time.monotonic()
            return False
        self.problem = self._failing = None
        return True


def said(error: BaseException) -> str:
    """An error in a line: what the system said, where it came to that. HTTP libraries quote each other around it."""
    if system := next((found for found in caused(error) if isinstance(found, OSError) and found.strerror), None):
        return redacted(f"{type(system).__name__}: {system.strerror}")
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return redacted(f"{type(error).__name__}: {first}" if first else type(error).__name__)
