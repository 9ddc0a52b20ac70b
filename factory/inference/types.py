"""What an engine takes and gives, whatever library is behind it. No torch."""

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from factory.execute.memory import is_exhausted

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """temperature 0: the likeliest token. top_k None: all. seed None: another answer each time.

    `top_logprobs`: so many of the likeliest tokens are told with each; None: no probability is.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`stops` are tokens that end the answer. `adapter`: by the name that the engine knows it by; None: the base.

    `inputs` are a processor's tensors beside the ids, of a prompt with images. `allowed` is asked, before each token,
    which tokens may come; None: all.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    stops: frozenset[int]
    adapter: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    allowed: "Allowed | None" = None


class Allowed(Protocol):
    """A grammar's state along one answer."""

    def mask(self, logits: Any) -> None:
        """Sets what may not come to -inf, in place: (vocabulary)."""
        ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Token:
    """`logprob` is under the model itself, whatever was drawn by; `top` the likeliest, with theirs."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of an answer. `stop`: with a stop token, which is not among the tokens."""

    reason: Reason
    error: str | None = None
    exhausted: bool = False  # the error is a lack of memory


def failed(error: BaseException) -> Done:
    """What an answer ends with that an error has ended."""
    return Done("error", f"{type(error).__name__}: {error}", is_exhausted(error))


Event = Token | Done


class Overloaded(Exception):
    """As many wait as may wait."""


class Unable(Exception):
    """The engine, or the model that it holds, cannot do this at all."""


class Stopping(Exception):
    """The engine takes no more."""


class Ticket:
    """One answer that is being written. `tell` is called from the engine's thread, and last with Done."""

    __slots__ = ("cancelled", "request", "tell")

    def __init__(self, request: Request, tell: Callable[[Event], None]):
        self.request, self.tell, self.cancelled = request, tell, False

    def cancel(self) -> None:
        """Its place is free before the next token."""
        self.cancelled = True


class Stream:
    """The events of one answer, in the thread that asks. Leaving the loop early cancels it (`with closing(stream)`)."""

    def __init__(self, submit: Callable[[Request, Callable[[Event], None]], Ticket], request: Request):
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.ticket = submit(request, self._events.put)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, Done):
                return

    def close(self) -> None:
        self.ticket.cancel()


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is."""

    running: int
    waiting: int
    tokens: int  # that were written since it began
    prompt_tokens: int


Seen = tuple[Sequence[int], dict[str, Any]]  # a row of tokens, and a processor's tensors beside it


class Engine(Protocol):
    """`context`: the most tokens of a prompt and its answer.

    `grammars`: whether it asks `Request.allowed`; `sees`: whether it gives a model `Request.inputs`.
    """

    @property
    def context(self) -> int: ...

    @property
    def grammars(self) -> bool: ...

    @property
    def sees(self) -> bool: ...

    def submit(self, request: Request, tell: Callable[[Event], None]) -> Ticket:
        """Raises Overloaded, or Stopping."""
        ...

    def generate(self, request: Request) -> Stream: ...

    def batch(self, requests: Sequence[Request]) -> list[tuple[list[Token], Done]]:
        """All of them, in their order."""
        ...

    def embed(self, rows: Sequence[Sequence[int]], adapter: str | None) -> Future[list[list[float]]]:
        """Of each row of tokens the mean of its last states, of length 1. Raises Unable, Overloaded, or Stopping.

        What is cancelled is not gone on with; where the engine ends before it is there, it is Stopping too.
        """
        ...

    def score(self, rows: Sequence[Seen], adapter: str | None) -> Future[list[float]]:
        """Of each row the reward model's score at its last token, as `embed` gives it."""
        ...

    def count(self) -> Load: ...

    @property
    def alive(self) -> bool:
        """Whether it answers: not once it was stopped, or an error has ended its thread."""
        ...

    def stop(self, grace: float) -> None:
        """Takes no more, and ends in `grace` seconds: who is not done by then is cut, with reason `length`.

        Asked again it ends no later than it would have.
        """
        ...
