"""A server of a tiny model within the test's own process, and the official client before it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from factory.config import compose
from factory.config.settings import Serve
from factory.inference import asked
from factory.inference.room import Room, opened
from factory.inference.types import Done, Request, Token
from factory.verbs.use import to_write

TINY = ("hardware=cpu", "tracking=none", "precision=fp32", "generation.temperature=0", "generation.max_tokens=12")


def planned(verb: Any, *words: str) -> tuple[Any, Any, Any]:
    """The plan of a command line, its settings, and the secret."""
    line = compose.parse(list(words))
    own = asked.taken_apart(verb, line.overrides)
    (side,) = asked.sides(asked.named_run(own), ())
    return (*to_write(verb, line, own, side), own.secret)


def room_of(verb: Any, *words: str) -> tuple[Room, Any]:
    """What a command line opens, and its settings."""
    plan, settings, _ = planned(verb, *words)
    title = asked.name_of(asked.named_run(asked.Line(words, None))) or "model"
    told: list[str] = []
    adapters, name = (settings.serve.adapters, settings.serve.name) if verb == "serve" else ({}, None)
    return opened(plan, settings.engine, adapters, name or title, told.append), settings


@dataclass
class Serving:
    url: str
    room: Room
    server: Any
    thread: threading.Thread

    def client(self, key: str = "none", **more: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **more)

    def http(self) -> Any:
        import httpx

        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def serving(room: Room, settings: Any, key: str | None = None, **changes: Any) -> Iterator[Serving]:
    from factory.serve.run import listening, server

    asked: Serve = settings.serve.model_copy(update={"port": 0, **changes})
    with listening(asked) as at:
        made = server(room, settings.generation, asked, key)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        while not made.started:
            time.sleep(0.005)
        try:
            yield Serving(f"http://127.0.0.1:{at.getsockname()[1]}", room, made, thread)
        finally:
            made.should_exit = True
            thread.join(20)


class _Ticket:
    def cancel(self) -> None:
        pass


def says(room: Room, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """From now on the room's engine answers with the text; the requests that it is sent."""
    seen = list[Request]()

    def submit(request: Request, tell: Callable[[Any], None]) -> Any:
        seen.append(request)
        for token in room.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]:
            tell(Token(token))
        tell(Done("stop"))
        return _Ticket()

    monkeypatch.setattr(type(room.engine), "submit", lambda self, request, tell: submit(request, tell))
    return seen
