"""The scheduler's end by an error: nobody waits for what never comes, and nobody is taken any more."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from factory.inference.scheduler import Scheduler
from factory.inference.types import Done, Event, Request, Sampling, Stopping, Ticket

REQUEST = Request(ids=(1,), sampling=Sampling(max_tokens=1), stops=frozenset())


class Broken:
    """A lane that fails at a step, and again as its answers are to be ended, as an engine does that has died."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.begin = threading.Event()

    @property
    def busy(self) -> int:
        return len(self.tickets)

    def admit(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)

    def step(self) -> int:
        self.begin.wait(20)
        raise RuntimeError("it died")

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        leaving = [ticket for ticket in self.tickets if which(ticket)]
        for ticket in leaving:
            self.tickets.remove(ticket)
            ticket.tell(done)
        if leaving:
            raise RuntimeError("it is dead")


def test_an_engine_that_dies_tells_all_and_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    lane = Broken()
    made = Scheduler(lambda _: lane, lambda: [lane], most=1, queue=5)
    told: list[list[Event]] = [[], []]
    for each in told:  # one is written, one waits
        made.submit(REQUEST, each.append)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            made.call(lambda: None)
        except BaseException as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    while not lane.busy:
        pass
    asking.start()
    while not made._jobs:
        pass
    assert made.alive
    lane.begin.set()
    made._thread.join(20)
    asking.join(20)
    assert not made.alive and "the engine ended" in caplog.text
    assert told[0] == [Done("error", "RuntimeError: it died")]
    assert told[1] == [Done("error", "RuntimeError: it is dead")]
    assert [type(error) for error in raised] == [Stopping]
    with pytest.raises(Stopping):
        made.submit(REQUEST, told[0].append)
    with pytest.raises(Stopping):
        made.call(lambda: None)
    made.stop(0)


def test_a_panic_of_a_job_reaches_who_asked_and_ends_nobody_else() -> None:
    class Panic(BaseException):
        pass

    def job() -> Any:
        raise Panic

    made = Scheduler(lambda _: Broken(), list, most=1, queue=5)
    with pytest.raises(Panic):
        made.call(job)
    assert made.call(lambda: 3) == 3 and made.alive
    made.stop(0)
    assert not made.alive
