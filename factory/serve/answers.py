"""Events of the engine to what a client gets: whole answers, or a stream with a valid end whatever happens."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from factory.data.record import ToolCall
from factory.inference.room import Room
from factory.inference.text import Writer
from factory.inference.types import Done, Event, Overloaded, Request, Stopping, Ticket, Token
from factory.serve import errors
from factory.serve.metrics import Metrics

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def events(room: Room, requests: Sequence[Request], tickets: list[Ticket]) -> AsyncGenerator[tuple[int, Event]]:
    """Of all of them, each with its number. Leaving early cancels what still runs. Raises ApiError.

    `tickets`: an empty list for those of the requests, by which one may be cancelled.
    """
    loop, found = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

    def teller(number: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(found.put_nowait, (number, event))

        return tell

    try:
        for number, request in enumerate(requests):
            tickets.append(room.engine.submit(request, teller(number)))
        running = len(requests)
        while running:
            number, event = await found.get()
            running -= isinstance(event, Done)
            yield number, event
    except Overloaded:
        raise errors.overloaded() from None
    except Stopping:
        raise errors.stopping() from None
    finally:
        for ticket in tickets:
            ticket.cancel()


@dataclass(slots=True)
class Shown:
    """What a token added to an answer: its text, and the tokens that the text is of, for their probabilities."""

    text: str
    tokens: list[Token]
    done: Done | None = None


@dataclass(slots=True)
class Watch:
    """Counts and times of one request."""

    metrics: Metrics
    started: float = field(default_factory=time.monotonic)
    tokens: int = 0

    def token(self) -> None:
        if not self.tokens:
            self.metrics.first_token.observe(time.monotonic() - self.started)
        self.tokens += 1

    def end(self) -> None:
        self.metrics.whole.observe(time.monotonic() - self.started)


async def shown(
    room: Room,
    requests: Sequence[Request],
    stops: Sequence[str],
    watch: Watch,
    *,
    special: bool = False,
    goes_on: bool = False,
) -> AsyncIterator[tuple[int, Shown]]:
    """The texts as they grow. A last one of each answer is `done`.

    `special`: with the texts of special tokens. `goes_on`: each is the rest of its prompt, and no turn of its own.
    """
    befores = [request.ids if goes_on else () for request in requests]
    writers = [Writer(room.prompts.tokenizer, stops, special=special, before=before) for before in befores]
    held: list[list[Token]] = [[] for _ in requests]
    ended, tickets = set[int](), list[Ticket]()
    async with aclosing(events(room, requests, tickets)) as found:
        async for number, event in found:
            if number in ended:
                continue
            writer = writers[number]
            if isinstance(event, Token):
                watch.token()
                held[number].append(event)
                text = writer.feed(event.id)
                if text or writer.ended:
                    yield number, Shown(text, held[number], Done("stop") if writer.ended else None)
                    held[number] = []
                if writer.ended:
                    ended.add(number)
                    tickets[number].cancel()
            else:
                if event.reason == "error":
                    raise errors.no_memory() if event.exhausted else errors.broken()
                yield number, Shown(writer.finish(), held[number], event)
                ended.add(number)
            if len(ended) == len(requests):
                break
    watch.end()


REASONS = {"stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass(slots=True)
class Delta:
    """What is added to an answer; `reason` once it is whole."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: tuple[ToolCall, ...] = ()
    reason: str | None = None

    def and_then(self, more: "Delta") -> "Delta":
        return Delta(self.text + more.text, self.tokens + more.tokens, more.calls, more.reason)


async def deltas(found: AsyncIterator[tuple[int, Shown]]) -> AsyncIterator[tuple[int, Delta]]:
    async for number, part in found:
        yield number, Delta(part.text, part.tokens, (), part.done and REASONS[part.done.reason])


async def with_calls(
    found: AsyncIterator[tuple[int, Delta]], read: Callable[[Delta], Delta]
) -> AsyncIterator[tuple[int, Delta]]:
    """Each answer at once, when it is whole: until then nobody knows what of it is a call."""
    made: dict[int, Delta] = {}
    async for number, part in found:
        made[number] = made.get(number, Delta()).and_then(part)
        if part.reason is not None:
            yield number, read(made[number])


async def gathered(found: AsyncIterator[tuple[int, Delta]], count: int) -> list[Delta]:
    made = [Delta() for _ in range(count)]
    async for number, part in found:
        made[number] = made[number].and_then(part)
    return made


async def while_there(request: Any, work: Awaitable[T]) -> T:
    """What the work gives. Raises ApiError where the client left, and ends the work."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise errors.left()
    finally:
        for each in (working, leaving):
            each.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def stream(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Server-sent events. What fails in the middle is told as a last event, as OpenAI's clients read it."""
    try:
        async for chunk in chunks:
            yield event(chunk)
    except errors.ApiError as error:
        yield event(error.body)
    except Exception:
        _log.exception("a stream failed")
        yield event(errors.broken().body)
    yield b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, allow_nan=False).encode() + b"\n\n"


async def begun(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The same once its first chunk is there: a refusal is then a response of its own and no part of a stream."""
    first = await anext(chunks, None)

    async def again() -> AsyncIterator[dict[str, Any]]:
        async with aclosing(chunks):  # type: ignore[type-var]
            if first is not None:
                yield first
            async for chunk in chunks:
                yield chunk

    return again()


def head(kind: str, model: str) -> dict[str, Any]:
    prefix = {"chat.completion": "chatcmpl", "text_completion": "cmpl"}[kind]
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def told(room: Room, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Probabilities as chat completions have them."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = room.prompts.spelled(token)
        known = "\ufffd" not in text  # of half a character the text does not tell
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if known else None}

    return [{**entry(each.id, each.logprob), "top_logprobs": [entry(*other) for other in each.top]} for each in tokens]


def told_plainly(room: Room, tokens: Sequence[Token], at: int) -> dict[str, Any]:
    """Probabilities as completions have them; `at` characters of text come before."""
    spelled, texts, places = room.prompts.spelled, list[str](), list[int]()
    for token in tokens:
        texts.append(spelled(token.id))
        places.append(at)
        at += len(texts[-1])
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
        "top_logprobs": [{spelled(other): max(value, -9999.0) for other, value in token.top} for token in tokens],
        "text_offset": places,
    }


def called(calls: Sequence[ToolCall], *, streamed: bool) -> list[dict[str, Any]]:
    made = [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for call in calls
    ]
    return [{"index": number, **each} for number, each in enumerate(made)] if streamed else made
