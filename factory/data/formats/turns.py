"""Conversations: lists of {role, content}, {from, value}, or under a set's own tags, to messages."""

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from factory.data.formats import functions, media, order
from factory.data.formats.values import dumped, listed, parsed
from factory.data.record import BadRow, Message

Tags = dict[str, str]
CALL = "call"  # the role of a turn that is a function call and nothing else
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": CALL,
    "tool_call": CALL,
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
# LLaMA-Factory's tags that name a role
TAGS: dict[str, str] = {
    "system_tag": "system",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "function_tag": CALL,
    "observation_tag": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING = ("reasoning_content", "reasoning", "thinking")
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def answer(content: str) -> Message:
    """The assistant's message of a text, a leading <think> block apart."""
    if "<think>" not in content:
        return {"role": "assistant", "content": content}
    thought, said = _apart(content)
    message: Message = {"role": "assistant", "content": said}
    if thought:
        message["reasoning"] = thought
    return message


def _apart(content: str) -> tuple[str, str]:
    found = _THINK.match(content)
    return (found[1].strip(), content[found.end() :]) if found else ("", content)


def read(value: Any, name: str, tags: Tags | None, found: media.Found) -> list[Message]:
    """The messages of a column; what images they bring is added to `found`. Their order is not looked at."""
    turns = listed(value, name)
    if isinstance(turns[0], str):
        return _alternating(turns)
    role_key, content_key, roles = _dialect(turns[0], tags)
    turns = _by_call(turns, role_key, roles)
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("a message is not an object")
        role, content = turn.get(role_key), turn.get(content_key)
        known = roles.get(role) if isinstance(role, str) else None
        if known is None:
            known = _role(role, roles)
        if len(turn) > 2 or not isinstance(content, str) or known == CALL:
            messages.append(_message(turn, known, content, found, names))
        elif known == "assistant":
            messages.append(_answered(content))
        else:
            messages.append({"role": known, "content": content})
    return messages


def of_table(value: Any, tags: Tags | None) -> Any:
    """The messages of a text that is a list of them in JSON, as a table of texts (csv) has it; all else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        turns = parsed(value, "messages")
    except BadRow:
        return value
    if not turns:
        return value
    role_key, content_key, roles = _dialect(turns[0], tags)
    keys = {content_key, "tool_calls", "function_call"}

    def is_message(turn: Any) -> bool:
        if not isinstance(turn, dict) or keys.isdisjoint(turn) or not isinstance(turn.get(role_key), str):
            return False
        return _known(turn[role_key], roles) is not None

    return turns if all(map(is_message, turns)) else value


def _by_call(turns: Sequence[Any], role_key: str, roles: dict[str, Any]) -> Sequence[Any]:
    """With the results of tools in the order of the calls before them: a template pairs them by their order alone."""
    if not any("tool_call_id" in turn for turn in turns if isinstance(turn, dict)):
        return turns

    def is_result(turn: Any) -> bool:
        role = turn.get(role_key) if isinstance(turn, dict) else None
        return isinstance(role, str) and _known(role, roles) == "tool"

    made, calls = list[Any](), list[Any]()
    for are_results, group in groupby(turns, key=is_result):
        found = list(group)
        if are_results and calls:  # an answer may have its calls in its text, without ids
            places = order.by_call([turn.get("tool_call_id") for turn in found], calls)
            if places is None:
                raise BadRow("the results of tools are not one of each of the calls before them")
            found = [found[place] for place in places]
        elif not are_results:
            called = found[-1].get("tool_calls") if isinstance(found[-1], dict) else None
            calls = functions.ids(called) if called else []
        made += found
    return made


def _alternating(texts: Sequence[Any]) -> list[Message]:
    """Of texts alone, as LIMA has them: the user's and the assistant's in turns."""
    if not all(isinstance(text, str) for text in texts):
        raise BadRow("a message is not an object")
    return [answer(text) if number % 2 else {"role": "user", "content": text} for number, text in enumerate(texts)]


def _dialect(first: Any, tags: Tags | None) -> tuple[str, str, dict[str, Any]]:
    """The keys of a role and of a content, and the roles by their names here."""
    first, tags = first if isinstance(first, dict) else {}, tags or {}
    role = tags.get("role_tag") or ("from" if "from" in first else "role")
    content = tags.get("content_tag") or ("value" if "value" in first and "content" not in first else "content")
    if not tags:
        return role, content, ROLES
    return role, content, ROLES | {tags[tag]: known for tag, known in TAGS.items() if tags.get(tag)}


def _role(role: Any, roles: dict[str, Any]) -> Any:
    if not isinstance(role, str):
        raise BadRow("a message has no role")
    known = _known(role, roles)
    if known is None:
        raise BadRow(f"unknown role {' '.join(role[:40].split())}")
    return known


def _known(role: str, roles: dict[str, Any]) -> Any:
    return roles.get(role) or roles.get(role.strip().lower())


def _answered(content: str) -> Message:
    message = answer(content)
    called = functions.after_mark(message["content"]) if "<functioncall>" in content else None
    if called:
        message["content"], message["tool_calls"] = called
    return message


def _message(turn: dict[str, Any], role: Any, content: Any, found: media.Found, names: dict[str, str]) -> Message:
    """A turn that has more to it than a text."""
    if role in (CALL, "assistant"):
        message = _rich_answer(turn, role, content, found)
        _note_names(turn.get("tool_calls"), message, names)
    else:
        message: Message = {"role": role, "content": _content(content, role, found, None)}
    if role == "tool":
        of = turn.get("tool_call_id")
        name = turn.get("name") or (names.get(of) if isinstance(of, str) else None)
        if isinstance(name, str) and name.strip():
            message["name"] = name
    weight = _weight(turn)
    if message["role"] != "assistant":
        if weight:
            raise BadRow("a message that is not the assistant's is to be trained")
    elif weight is not None and weight != 1:
        message["weight"] = weight
    return message


def _rich_answer(turn: dict[str, Any], role: Any, content: Any, found: media.Found) -> Message:
    thoughts: list[str] = [turn[key] for key in REASONING if isinstance(turn.get(key), str)]
    called = turn.get("tool_calls") or turn.get("function_call")
    if called:
        message = answer(_content("" if content is None else content, "assistant", found, thoughts))
        message["tool_calls"] = functions.calls(called)
    elif role == CALL:
        thought, content = _apart(content) if isinstance(content, str) else ("", content)
        said, calls = functions.turn(content)
        message: Message = {"role": "assistant", "content": said, "tool_calls": calls}
        thoughts.append(thought)
    else:
        message = _answered(_content(content, "assistant", found, thoughts))
    given = {thought.strip() for thought in (*thoughts, message.get("reasoning", ""))} - {""}
    if len(given) > 1:
        raise BadRow("an answer has two reasonings")
    if given:
        message["reasoning"] = given.pop()
    return message


def _content(content: Any, role: str, found: media.Found, thoughts: list[str] | None) -> str:
    """A text, or OpenAI's list of parts put together; a tool's result may be any JSON."""
    if isinstance(content, str):
        return content
    parts = isinstance(content, (list, tuple)) and all(isinstance(part, dict) and "type" in part for part in content)
    if parts and not (role == "tool" and _is_json(content)):
        return "".join(_part(part, found, thoughts) for part in content)
    if role == "tool" and content is not None:
        return dumped(content, "a tool's result")
    raise BadRow("a message has no text")


def _is_json(parts: Sequence[dict[str, Any]]) -> bool:
    """Whether a tool's result is a list of its own that only looks like parts: nothing, or things of other types."""
    known = (*TEXT_PARTS, *media.PARTS)
    return not parts or not any(part["type"] in known for part in parts)


def _part(part: dict[str, Any], found: media.Found, thoughts: list[str] | None) -> str:
    type = part["type"]
    if type in TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(type, str) and type in media.PARTS:
        return media.mark(part, found)
    if thoughts is not None and type in REASONING and isinstance(part.get(type) or part.get("text"), str):
        thoughts.append(part.get(type) or part["text"])
        return ""
    raise BadRow("a message has a part of an unknown type")


def _note_names(called: Any, message: Message, names: dict[str, str]) -> None:
    """Of the functions, by their calls' ids: a result says by such an id whose it is."""
    if isinstance(called, (list, tuple)):
        for raw, call in zip(called, message.get("tool_calls", ()), strict=False):
            if isinstance(raw.get("id"), str):
                names[raw["id"]] = call["name"]


def _weight(turn: dict[str, Any]) -> float | None:
    """What an answer counts; None: as all others do. `train` says yes or no, `weight` how much."""
    train, weight = turn.get("train"), turn.get("weight")
    if train is None and weight is None:
        return None
    if train is not None and not isinstance(train, bool):
        raise BadRow("train is not true or false")
    if weight is None:
        weight = 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= sys.float_info.max:
        raise BadRow("a weight is not a number of at least 0")
    return 0.0 if train is False else float(weight)
