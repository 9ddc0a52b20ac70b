"""Jobs beside answers, and the scheduler's end: nobody waits for what never comes, and nobody is taken any more."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from factory.inference.scheduler import Scheduler
from factory.inference.types import Done, Event, Overloaded, Request, Sampling, Stopping, Ticket

REQUEST = Request(ids=(1,), sampling=Sampling(max_tokens=1), stops=frozenset())


class Panic(BaseException):
    """As Rust's, which is no Exception."""


class Broken:
    """A lane that fails at a step, and again as its answers are to be ended, as an engine does that has died."""

    def __init__(self, kind: type[BaseException] = RuntimeError) -> None:
        self.kind, self.tickets = kind, list[Ticket]()
        self.begin = threading.Event()

    @property
    def busy(self) -> int:
        return len(self.tickets)

    def admit(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)

    def step(self) -> int:
        self.begin.wait(20)
        raise self.kind("it died")

    def end(self, done: Done, which: Callable[[Ticket], bool]) -> None:
        leaving = [ticket for ticket in self.tickets if which(ticket)]
        for ticket in leaving:
            self.tickets.remove(ticket)
            ticket.tell(done)
        if leaving:
            raise self.kind("it is dead")


@pytest.mark.parametrize(("kind", "last"), [(RuntimeError, "it is dead"), (Panic, "it died")])
def test_an_engine_that_dies_tells_all_and_takes_no_more(
    kind: type[BaseException], last: str, caplog: pytest.LogCaptureFixture
) -> None:
    lane = Broken(kind)
    made = Scheduler(lambda _: lane, lambda: [lane], most=1, queue=5)
    told: list[list[Event]] = [[], []]
    for each in told:  # one is written, one waits
        made.submit(REQUEST, each.append)
    while not lane.busy:
        pass
    waiting, left = (made.call([lambda: None]) for _ in range(2))
    assert left.cancel()
    assert made.alive
    lane.begin.set()
    made._thread.join(20)
    assert not made.alive and "the engine ended" in caplog.text
    assert told[0] == [Done("error", f"{kind.__name__}: it died")]
    assert told[1] == [Done("error", f"{kind.__name__}: {last}")]
    with pytest.raises(Stopping):
        waiting.result(20)
    with pytest.raises(Stopping):
        made.submit(REQUEST, told[0].append)
    with pytest.raises(Stopping):
        made.call([lambda: None])
    made.stop(0)


def test_a_panic_of_a_job_reaches_who_asked_and_ends_nobody_else() -> None:
    def job() -> Any:
        raise Panic

    made = Scheduler(lambda _: Broken(), list, most=1, queue=5)
    with pytest.raises(Panic):
        made.call([job]).result(20)
    assert made.call([lambda: 3]).result(20) == [3] and made.alive
    made.stop(0)
    assert not made.alive


def test_a_panic_at_the_door_reaches_who_asked_and_ends_nobody_else() -> None:
    class Closed(Broken):
        def admit(self, ticket: Ticket) -> None:
            raise Panic("no")

    made, told = Scheduler(lambda _: Closed(), list, most=1, queue=5), list[Event]()
    made.submit(REQUEST, told.append)
    assert made.call([lambda: 3]).result(20) == [3] and made.alive
    assert told == [Done("error", "Panic: no")]
    made.stop(0)


class Held:
    """Rows of jobs, of which the first waits for `go`; `order` is that in which they were done."""

    def __init__(self) -> None:
        self.begun, self.go, self.order = threading.Event(), threading.Event(), list[str]()

    def first(self) -> str:
        self.begun.set()
        self.go.wait(20)
        return self.row("first")()

    def row(self, name: str) -> Callable[[], str]:
        def done() -> str:
            self.order.append(name)
            return name

        return done


def test_jobs_take_turns_and_who_leaves_has_none() -> None:
    held, made = Held(), Scheduler(lambda _: Broken(), list, most=1, queue=2)
    one = made.call([held.first, held.row("second")])
    assert held.begun.wait(20)
    two, left, three = (made.call([held.row(f"{name} {at}") for at in (1, 2)]) for name in ("two", "left", "three"))
    with pytest.raises(Overloaded):
        made.call([held.row("one too many")])
    assert left.cancel()
    held.go.set()
    assert [each.result(20) for each in (one, two, three)] == [
        ["first", "second"],
        ["two 1", "two 2"],
        ["three 1", "three 2"],
    ]
    assert held.order == ["first", "two 1", "three 1", "second", "two 2", "three 2"]
    made.stop(0)


def test_jobs_that_are_not_done_at_the_end_are_told() -> None:
    held, made = Held(), Scheduler(lambda _: Broken(), list, most=1, queue=2)
    begun, waiting = made.call([held.first, held.row("second")]), made.call([held.row("other")])
    assert held.begun.wait(20)
    stopping = threading.Thread(target=made.stop, args=(0,))
    stopping.start()
    while made._closing is None:
        pass
    held.go.set()
    stopping.join(20)
    for each in (begun, waiting):
        with pytest.raises(Stopping):
            each.result(20)
    assert held.order == ["first"]
