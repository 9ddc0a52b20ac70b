"""A conversation with models behind `factory serve`: what each side was told, and how it is asked.

A turn is a message of OpenAI's API, but that of its images the files' `paths` are kept: they become data only as it is
sent. An answer that ended for want of tokens is `cut`, which is shown and not sent. The sides have the same questions,
and each its own answers, calls and results.
"""

import base64
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from factory.board.children import Server
from factory.data.tools import bare
from factory.inference.calls import open_call

Turn = dict[str, Any]
Talk = list[Turn]
_PATIENCE = httpx.Timeout(600, connect=10)


class Wrong(ValueError):
    """What was typed is no list of tools."""


@dataclass(frozen=True, slots=True)
class Can:
    """What a served model takes beside texts."""

    images: bool = False
    tools: bool = False


def can(server: Server) -> Can:
    found = _model(server)
    return Can(images="image" in found["input_modalities"], tools=found["tool_calls"])


def _model(server: Server) -> dict[str, Any]:
    return httpx.get(f"{server.address}/v1/models", timeout=60).json()["data"][0]


def tools_of(text: str) -> list[dict[str, Any]]:
    """Of a JSON list of functions, as OpenAI's API has them or bare. Raises Wrong."""
    if not text.strip():
        return []
    try:
        found = [bare(tool) for tool in json.loads(text)]
        if not all(isinstance(tool["name"], str) for tool in found):
            raise TypeError("a name is a text")
    except (ValueError, TypeError, AttributeError) as error:
        raise Wrong(str(error)) from None
    except KeyError:
        raise Wrong("one has no name") from None
    return [{"type": "function", "function": tool} for tool in found]


def told(talk: Talk, text: str, paths: list[str]) -> Talk:
    """With what was typed: the result of a call that waits for one, or else a question."""
    call = open_call(talk)
    if call is not None:
        name = call["function"]["name"]
        return [*talk, {"role": "tool", "content": text, "name": name, "tool_call_id": call["id"]}]
    return [*talk, {"role": "user", "content": text, **({"paths": paths} if paths else {})}]


def answers(server: Server, talk: Talk, system: str, settings: dict[str, Any]) -> Iterator[Turn]:
    """The answer so far, again and again. Why the server refuses is the answer, which it is not told of afterwards."""
    first = [{"role": "system", "content": system}] if system else []
    try:
        messages = [*first, *map(_sent, _answered(talk))]
        asked = {"model": _model(server)["id"], "messages": messages, "stream": True, **settings}
        yield from _streamed(f"{server.address}/v1/chat/completions", asked)
    except httpx.HTTPError as error:
        yield _refused(str(error) or type(error).__name__)


def _streamed(address: str, asked: dict[str, Any]) -> Iterator[Turn]:
    text, calls, cut = "", list[dict[str, Any]](), False
    with httpx.stream("POST", address, json=asked, timeout=_PATIENCE) as response:
        if response.status_code != httpx.codes.OK:
            yield _refused(_refusal(response.read()))
            return
        for each in response.iter_lines():
            if not each.startswith("data: ") or each == "data: [DONE]":
                continue
            event = json.loads(each.removeprefix("data: "))
            if failed := event.get("error"):  # in the middle
                yield _answer(f"{text}\n\n{failed['message']}".strip(), calls)
            for choice in event.get("choices") or []:
                text += choice["delta"].get("content") or ""
                calls += choice["delta"].get("tool_calls") or []
                cut = cut or choice["finish_reason"] == "length"
                yield {**_answer(text, calls), **({"cut": True} if cut else {})}


def _refusal(body: bytes) -> str:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")


def _answer(text: str, calls: list[dict[str, Any]] | None = None) -> Turn:
    given = [{name: call[name] for name in ("id", "type", "function")} for call in calls or ()]
    return {"role": "assistant", "content": text, **({"tool_calls": given} if given else {})}


def _refused(why: str) -> Turn:
    return {**_answer(why), "refused": True}


def _answered(talk: Talk) -> Talk:
    """Without the questions that were refused, and why: no model has said that."""
    kept: Talk = []
    for turn in talk:
        if not turn.get("refused"):
            kept.append(turn)
        elif kept and kept[-1]["role"] == "user":
            kept.pop()
    return kept


def _sent(turn: Turn) -> Turn:
    """As the API takes it."""
    message = {name: value for name, value in turn.items() if name not in ("paths", "cut")}
    if not (paths := turn.get("paths")):
        return message
    images = [{"type": "image_url", "image_url": {"url": _data(Path(path))}} for path in paths]
    return {**message, "content": [*images, {"type": "text", "text": turn["content"]}]}


def _data(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
