"""Tools in words: how a model is told of them, how its calls read, and how they are read back.

The words are data (`factory/templates/tools/`), which chat templates are made of too.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from factory import templates
from factory.data.record import BadRow, Message, ToolCall
from factory.templates import ToolText
from factory.templates.slots import fill

Found = tuple[ToolCall, int]  # a call, and where it ends
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`opening` finds where calls may begin, `one` reads the call that stands at a place, `between` parts two calls."""

    text: ToolText
    opening: re.Pattern[str]
    one: Callable[[str, int], Found | None]
    between: re.Pattern[str]
    closing: re.Pattern[str]

    def describe(self, tools: Sequence[dict[str, Any]]) -> str:
        """What the system message says of them."""
        return fill(self.text.describe, {"tools": self.text.between_tools.join(map(self._tool, tools))})

    def _tool(self, tool: dict[str, Any]) -> str:
        function = bare(tool)
        values = {
            "name": function["name"],
            "description": function.get("description") or "",
            "parameters": function.get("parameters") or {},
            "function": function,
            "tool": wrapped(tool),
        }
        filled = {f"{name}|tojson": dumped(value) for name, value in values.items()}
        filled |= {f"{name}|tojson(indent=4)": dumped(value, 4) for name, value in values.items()}
        return fill(self.text.tool, filled | {name: values[name] for name in ("name", "description")})

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """What the assistant writes. Raises BadRow where it would read back as something else."""
        text = fill(self.text.calls, {"calls": self.text.between_calls.join(map(self._call, calls))})
        if self.parse(text) != [*calls]:
            raise BadRow("a tool call that the tool format cannot write")
        return text

    def _call(self, call: ToolCall) -> str:
        name, arguments = call["name"], dumped(call["arguments"])
        return fill(self.text.call, {"name": name, "name|tojson": dumped(name), "arguments|tojson": arguments})

    def result(self, content: str) -> str:
        """How the user's turn tells of a tool's result."""
        return fill(self.text.result, {"content": content})

    def parse(self, text: str) -> list[ToolCall] | None:
        """The calls that an answer ends with; None where it is plain text."""
        parted = self.split(text)
        return None if parted is None else parted[1]

    def split(self, text: str) -> tuple[str, list[ToolCall]] | None:
        """An answer's own text and its calls, or None where it has no calls; whatever the text, it never raises."""
        start = 0
        while (opening := self.opening.search(text, start)) is not None:
            calls, end, whole = self._run(text, opening.end())
            if whole:
                return text[: opening.start()].removesuffix(self.text.after_content), calls
            start = max(end, opening.end(), start + 1)  # what was read as calls holds no other beginning
        return None

    def _run(self, text: str, at: int) -> tuple[list[ToolCall], int, bool]:
        """The calls from here on, how far they go, and whether they go to the text's end."""
        calls: list[ToolCall] = []
        while (found := self.one(text, at)) is not None:
            calls.append(found[0])
            at = found[1]
            if self.closing.fullmatch(text, at):
                return calls, len(text), True
            gap = self.between.match(text, at)
            if gap is None:
                break
            at = gap.end()
        return calls, at, False


def bare(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool without the wrapping of OpenAI's API."""
    return tool["function"] if isinstance(tool.get("function"), dict) else tool


def wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": bare(tool)}


def dumped(value: Any, indent: int | None = None) -> str:
    """JSON as the `tojson` of chat templates writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _value(text: str, at: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object that stands here."""
    try:
        value, end = _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def _object(key: str, closing: str = "") -> Callable[[str, int], Found | None]:
    """Reads {"name": …, KEY: {…}} and what closes it."""
    end_of_call = re.compile(rf"\s*{re.escape(closing)}" if closing else "")

    def one(text: str, at: int) -> Found | None:
        found = _value(text, at)
        if found is None:
            return None
        value, end = found
        name, arguments = value.get("name"), value.get(key)
        closed = end_of_call.match(text, end)
        if not isinstance(name, str) or not isinstance(arguments, dict) or closed is None:
            return None
        return ToolCall(name=name, arguments=arguments), closed.end()

    return one


def _lines(header: str) -> Callable[[str, int], Found | None]:
    """Reads a header with the name, and the arguments after it."""
    pattern = re.compile(header)

    def one(text: str, at: int) -> Found | None:
        match = pattern.match(text, at)
        found = None if match is None else _value(text, match.end())
        if match is None or found is None:
            return None
        return ToolCall(name=match["name"], arguments=found[0]), found[1]

    return one


_SPACE = r"\s*"
_NAME = r"(?P<name>[^\s{}]|[^\s{}][^\n{}]*[^\s{}])"  # a line of its own that is no JSON
# opening, one call, between calls, closing
_READERS: dict[str, tuple[str, Callable[[str, int], Found | None], str, str]] = {
    "default": (r"(?m:^)(?=Action:)", _lines(rf"Action: *{_NAME} *\n+Action Input: *"), r"\s*\n\s*", _SPACE),
    "glm4": (rf"(?m:^)(?={_NAME} *\n\{{)", _lines(rf"{_NAME} *\n"), r"\s*\n\s*", _SPACE),
    "llama3": (r"(?m:^)[^\S\n]*(?:<\|python_tag\|>)?(?=\{)", _object("parameters"), r"\s*;\s*", _SPACE),
    # a decoder that leaves special tokens out leaves the list alone
    "mistral": (r"(?:\[TOOL_CALLS\]|\A)\s*\[\s*", _object("arguments"), r"\s*,\s*", r"\s*\]\s*"),
    "qwen": (r"<tool_call>\s*", _object("arguments", "</tool_call>"), r"\s*<tool_call>\s*", _SPACE),
}


def _format(words: str, reader: str) -> ToolFormat:
    opening, one, between, closing = _READERS[reader]
    return ToolFormat(templates.tool_text(words), re.compile(opening), one, re.compile(between), re.compile(closing))


FORMATS: dict[str, ToolFormat] = {name: _format(name, name.removesuffix("_tekken")) for name in templates.tool_names()}


def in_words(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    format: str,
    default_system: str = "",
    role: Literal["user", "tool"] = "user",
) -> list[Message]:
    """The conversation for a chat template that knows of no tools: they, their calls and results are texts.

    `default_system` is what the template says where there is no system message, which the tools would take the place
    of. Results that follow each other share one message of the user; with `role="tool"` each stays one of its own, and
    has the word before it that the description promises.
    """
    words = FORMATS[format]
    told = _told(messages, tools, words, default_system)
    made: list[Message] = []
    for is_result, group in groupby(told, key=lambda message: message["role"] == "tool" and role == "user"):
        if is_result:
            made.append({"role": "user", "content": "\n".join(words.result(message["content"]) for message in group)})
        else:
            made += [_called(message, words) for message in group]
    if not tools or not words.text.promised:
        return made
    return [{**each, "content": words.result(each["content"])} if each["role"] == "tool" else each for each in made]


def _told(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], words: ToolFormat, default_system: str
) -> list[Message]:
    """The messages with the tools in the system's."""
    if not tools:
        return list(messages)
    has_system = bool(messages) and messages[0]["role"] == "system"
    own = messages[0]["content"] if has_system else default_system
    texts = [words.describe(tools), own] if words.text.first else [own, words.describe(tools)]
    system: Message = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [system, *messages[has_system:]]


def _called(message: Message, words: ToolFormat) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message["content"]
    made = message.copy()
    del made["tool_calls"]
    made["content"] = (content + words.text.after_content if content else "") + words.calls(calls)
    return made
