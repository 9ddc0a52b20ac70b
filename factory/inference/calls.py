"""Tool calls: read back from an answer as its model writes them, or begun for it; the one that waits for a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.data.record import ToolCall
from factory.data.tools import ToolFormat, bare

_STANDS_FOR = "qz_name"  # a name that the format writes, to see what comes before it


@dataclass(frozen=True, slots=True)
class Read:
    text: str
    calls: tuple[ToolCall, ...]


def read(raw: str, shown: str, form: ToolFormat | None, tools: Sequence[dict[str, Any]]) -> Read:
    """An answer's text and its calls of tools that there are.

    `raw` has the texts of special tokens, `shown` has not. A call of a tool that nobody offered is a text.
    """
    if form is None:
        return Read(shown, ())
    names = {bare(tool)["name"] for tool in tools}
    for text in (shown, raw):
        found = form.split(text.strip())
        if found is not None and {call["name"] for call in found[1]} <= names:
            return Read(found[0], tuple(found[1]))
    return Read(shown, ())


def open_call(said: Sequence[Any]) -> Any:
    """The first call of the last answer that has no result yet; None where there is none."""
    for results, message in enumerate(reversed(said)):
        if message["role"] != "tool":
            calls = message.get("tool_calls", [])
            return calls[results] if results < len(calls) else None
    return None


def beginning(form: ToolFormat, tool: str | None) -> str:
    """What an answer begins with that calls this tool; None: any."""
    text = form.calls([ToolCall(name=tool or _STANDS_FOR, arguments={})])
    return text.partition(_STANDS_FOR)[0] if tool is None else text.rpartition("{}")[0]
