"""Tools and their calls, as they come: OpenAI's structure, bare objects, JSON in texts, glaive's own marks."""

import re
from typing import Any

from factory.data.formats.values import parsed
from factory.data.record import BadRow, ToolCall

NO_ARGUMENTS = ("", "null")
_MARKED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
# glaive: the arguments are JSON in single quotes within what is JSON but for them
_QUOTED = re.compile(r"""\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*'(.*)'\s*\}""", re.DOTALL)
# ... and stand after a mark, with the end of the text spelled out
_AFTER_MARK = re.compile(r"(.*?)<functioncall>\s*(\{.*\})\s*(?:<\|endoftext\|>)?\s*", re.DOTALL)


def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """The functions that a row offers, each as {name, description, parameters, …}."""
    if isinstance(value, str):
        value = parsed(value, "tools") if value.strip() else ()
    if isinstance(value, dict):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        if value is None:
            return ()
        raise BadRow("tools is not a list")
    return tuple(_tool(tool) for tool in value)


def _function(value: Any, what: str) -> dict[str, Any]:
    """An object with a name, out of OpenAI's wrapping."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
        raise BadRow(f"{what} has no name")
    return value


def _tool(value: Any) -> dict[str, Any]:
    value = _function(value, "a tool")
    given = {name: part for name, part in value.items() if part is not None and name != "type"}
    if "parameters" not in given and "input_schema" in given:  # Anthropic's
        given["parameters"] = given.pop("input_schema")
    found = {"description": "", "parameters": {}} | given
    if not isinstance(found["description"], str):
        raise BadRow("a tool's description is not a text")
    if not isinstance(found["parameters"], dict):
        raise BadRow("a tool's parameters are not an object")
    return {"name": value["name"]} | found


def calls(value: Any) -> list[ToolCall]:
    """One call or several, as objects or as JSON in a text."""
    if isinstance(value, str):
        value = _object(value)
    if isinstance(value, dict):
        value = (value,)
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRow("a function call is not JSON")
    return [_call(call) for call in value]


def ids(value: Any) -> list[Any]:
    """Those of `calls`, None where one has none. Raises BadRow where a text is not JSON."""
    if isinstance(value, str):
        value = _object(value)
    found = value if isinstance(value, (list, tuple)) else (value,)
    return [call.get("id") if isinstance(call, dict) else None for call in found]


def turn(content: Any) -> tuple[str, list[ToolCall]]:
    """What a turn that is a function call says besides, and its calls, with marks around them or bare."""
    if not isinstance(content, str):
        return "", calls(content)
    marked = _MARKED.findall(content)
    if marked:
        return _MARKED.sub("", content).strip(), [call for part in marked for call in calls(part)]
    return after_mark(content) or ("", calls(content))


def after_mark(content: str) -> tuple[str, list[ToolCall]] | None:
    """An answer's text and the call that glaive writes behind it; None where there is none."""
    found = _AFTER_MARK.fullmatch(content)
    return (found[1].strip(), calls(found[2])) if found else None


def _object(value: str) -> Any:
    quoted = _QUOTED.fullmatch(value.strip())
    if not quoted:
        return parsed(value, "a function call")
    name = parsed(quoted[1], "a function call")
    return {"name": name, "arguments": quoted[2].replace("\\'", "'")}


# OpenAI's, templates', LangChain's and Anthropic's
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_BESIDE = frozenset(["id", "type", "name", "index"])


def _call(value: Any) -> ToolCall:
    value = _function(value, "a function call")
    arguments = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), None)
    if arguments is None and value.keys().isdisjoint(_ARGUMENTS) and value.keys() - _BESIDE:
        raise BadRow(f"a call has none of {', '.join(_ARGUMENTS)}, but other keys")  # which may be its arguments
    if isinstance(arguments, str):
        arguments = parsed(arguments, "a call's arguments") if arguments.strip() not in NO_ARGUMENTS else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRow("a call's arguments are not an object")
    return {"name": value["name"], "arguments": arguments}
