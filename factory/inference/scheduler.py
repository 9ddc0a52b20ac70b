"""Who writes when: a queue with an end, answers that join and leave between two tokens, and an end for all.

One thread runs the model. Between two tokens of those who write it reads a stretch of a prompt that waits, so that a
long prompt holds nobody up for longer than that.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from factory.inference.types import Done, Event, Load, Overloaded, Request, Stopping, Stream, Ticket, Token, failed

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Lane(Protocol):
    """Answers that are written side by side. All of it runs in the scheduler's thread."""

    @property
    def busy(self) -> int:
        """How many write, or have their prompt read."""
        ...

    def admit(self, ticket: Ticket) -> None: ...

    def step(self) -> int:
        """A stretch of a prompt and a token of each who writes; returns how many tokens there were."""
        ...

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        """Ends those answers."""
        ...


@dataclass(slots=True)
class Job:
    """What is asked of the model beside answers, row by row. `done` may be cancelled until all of it is there."""

    rows: Sequence[Callable[[], Any]]
    done: Future[list[Any]] = field(default_factory=Future)
    found: list[Any] = field(default_factory=list)

    def step(self) -> bool:
        """The next row; whether there are more."""
        if self.done.cancelled():
            return False
        try:
            self.found.append(self.rows[len(self.found)]())
        except BaseException as error:  # panics of Rust are no Exception
            self.fail(error)
            return False
        if len(self.found) < len(self.rows):
            return True
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(self.found)
        return False

    def fail(self, error: BaseException) -> None:
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class Scheduler:
    """`lane_of` gives the lane of a request; `most` answers are written at a time, on all lanes; `queue` may wait."""

    def __init__(self, lane_of: Callable[[Request], Lane], lanes: Callable[[], list[Lane]], most: int, queue: int):
        self._lane_of, self._lanes, self._most, self._limit = lane_of, lanes, most, queue
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._running = self._tokens = self._prompt_tokens = 0
        self._closing: float | None = None  # when, by time.monotonic, what still runs is cut
        self._jobs: deque[Job] = deque()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Ticket:
        ticket = Ticket(request, tell)
        with self._changed:
            if self._closing is not None:
                raise Stopping
            # one that finds a free place does not wait
            if len(self._waiting) >= self._limit + max(0, self._most - self._running):
                raise Overloaded
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def call(self, rows: Sequence[Callable[[], T]]) -> Future[list[T]]:
        """What the functions give, run in the thread that has the model: one between two tokens, jobs by turns."""
        job = Job(rows)
        with self._changed:
            if self._closing is not None:
                raise Stopping
            if len(self._jobs) >= self._limit + self._most:
                raise Overloaded
            self._jobs.append(job)
            self._changed.notify_all()
        return job.done

    @property
    def alive(self) -> bool:
        """Whether its thread runs: after `stop`, and after an error that ended it, there are no more answers."""
        return self._thread.is_alive()

    def count(self) -> Load:
        with self._changed:
            return Load(self._running, len(self._waiting), self._tokens, self._prompt_tokens)

    def stop(self, grace: float) -> None:
        with self._changed:
            end = time.monotonic() + grace
            self._closing = end if self._closing is None else min(self._closing, end)
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # of a lane that could not even be ended
            _log.exception("the engine ended")
            self._end_all(failed(error))

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._running and not self._jobs and self._closing is None:
                    self._changed.wait()
                self._admit()
                cut = self._closing is not None and time.monotonic() >= self._closing
                job = self._jobs.popleft() if self._jobs and not cut else None
                idle = not self._running and not self._waiting
            if job is not None:
                self._do(job)
            elif cut or (idle and self._closing is not None):
                self._end_all(Done("length"))
                return
            self._step()

    def _admit(self) -> None:
        """In the order in which they came. One that was cancelled while it waited is told so."""
        for ticket in [each for each in self._waiting if each.cancelled]:
            self._waiting.remove(ticket)
            ticket.tell(Done("cancelled"))
        while self._waiting and self._running < self._most:
            ticket = self._waiting.popleft()
            try:
                self._lane_of(ticket.request).admit(ticket)
            except BaseException as error:  # of this one alone, as of a job
                _log.exception("a request was not taken")
                ticket.tell(failed(error))
                continue
            self._running += 1
            self._prompt_tokens += len(ticket.request.ids)

    def _do(self, job: Job) -> None:
        if job.step():
            with self._changed:
                self._jobs.append(job)

    def _step(self) -> None:
        for lane in self._lanes():
            if not lane.busy:
                continue
            try:
                lane.end(Done("cancelled"), lambda ticket: ticket.cancelled)
                written = lane.step()
            except Exception as error:  # of one lane's answers: the others go on
                _log.exception("the engine failed")
                lane.end(failed(error), lambda _: True)
                written = 0
            with self._changed:
                self._tokens += written
        with self._changed:
            self._running = sum(lane.busy for lane in self._lanes())

    def _end_all(self, done: Done) -> None:
        """Nobody waits for what never comes, and nobody else may ask."""
        with self._changed:
            self._closing, self._running = time.monotonic(), 0
            jobs, self._jobs = self._jobs, deque()
            waiting, self._waiting = self._waiting, deque()
        for job in jobs:
            job.fail(Stopping())
        for lane in self._lanes():
            try:
                lane.end(done, lambda _: True)
            except BaseException:  # the others, and who waits, are told all the same
                _log.exception("answers could not be ended")
        for ticket in waiting:
            ticket.tell(done)


class Scheduled:
    """What an engine answers by its scheduler alone."""

    __slots__ = ("_scheduler",)
    _scheduler: Scheduler

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Ticket:
        return self._scheduler.submit(request, tell)

    def generate(self, request: Request) -> Stream:
        return Stream(self.submit, request)

    def batch(self, requests: Sequence[Request]) -> list[tuple[list[Token], Done]]:
        streams = [self.generate(request) for request in requests]
        found = list[tuple[list[Token], Done]]()
        for stream in streams:
            *tokens, last = stream
            assert isinstance(last, Done)
            found.append(([token for token in tokens if isinstance(token, Token)], last))
        return found

    def count(self) -> Load:
        return self._scheduler.count()

    @property
    def alive(self) -> bool:
        return self._scheduler.alive

    def stop(self, grace: float) -> None:
        self._scheduler.stop(grace)
