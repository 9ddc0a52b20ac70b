"""Requests to the server, past the sockets: bodies and headers, before a tiny model whose engine says one thing."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import TINY, room_of, says

from factory.serve.app import app
from fuzz.mutation import as_json, changed, twisted

_PART = {"type": "text", "text": "What is it?"}
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "auto"}}
_CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"x": 1}'}}
_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up.", "parameters": {"type": "object"}},
}
_DRAWN = {"model": "tiny", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a", "b"], "n": 2}
_CHAT = _DRAWN | {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [_PART, _IMAGE]},
        {"role": "user", "content": "Hi <image>"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "look_up"},
    ],
    "tools": [_TOOL],
    "tool_choice": "auto",
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
}
_PLAIN = _DRAWN | {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
_SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", _PLAIN),
    ("/v1/chat/completions", _PLAIN | {"response_format": _FORMAT}),
    ("/v1/completions", _DRAWN | {"prompt": ["The sea", "Bread"], "logprobs": 2}),
    ("/v1/completions", _DRAWN | {"prompt": [1, 2, 3], "echo": True, "stream": True}),
    ("/v1/embeddings", {"model": "tiny", "input": ["The sea", "Bread"], "encoding_format": "float"}),
    ("/v1/score", {"model": "tiny", "messages": _PLAIN["messages"]}),
]


def opened(folder: Path) -> Callable[[random.Random], str]:
    model = tiny.save(folder / "llama")
    room, settings = room_of("serve", f"model.path={model}", "serve.name=tiny", "engine.batch=16", *TINY)
    most = 300_000
    server = app(room, settings.generation, _with(settings.serve, most), "a-key-of-some-length")
    loop = asyncio.new_event_loop()

    def case(chance: random.Random) -> str:
        path, seed = chance.choice(_SEEDS)
        body = as_json(twisted(seed, chance), chance)
        headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer a-key-of-some-length")]
        if chance.random() < 0.1:
            at = chance.randrange(len(headers))
            headers[at] = tuple(changed(each, chance).replace(b"\n", b"") for each in headers[at])  # type: ignore[assignment]
        if chance.random() < 0.1:
            path = changed(path.encode(), chance).decode("utf-8", "replace")
        with pytest.MonkeyPatch.context() as patches:
            says(room, "It is one.", patches)
            status = loop.run_until_complete(_answered(server, path, headers, body))
        assert status < 500, f"{path} answers {status}"
        return "answered" if status < 400 else "refused"

    return case


def _with(serve: Any, most: int) -> Any:
    return serve.model_copy(update={"max_body": most})


async def _answered(server: Any, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [*headers, (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    given, told = [{"type": "http.request", "body": body, "more_body": False}], list[dict[str, Any]]()
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    await server(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in told)
    if told[0]["status"] < 300 and text.startswith(b"{"):
        json.loads(text)
    assert b"Traceback" not in text and b'"internal_error"' not in text, text[:300]
    return told[0]["status"]
