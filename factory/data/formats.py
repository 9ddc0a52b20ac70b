"""Rows to the standard record of the paper (section 4.2, Table 3), format found from the columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from factory.data.read import Row

Kind = Literal["text", "messages", "pairs"]
Message = dict[str, str]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`text` records have one response and no prompt; of a pair, `rejected` holds the worse response."""

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    rejected: tuple[Message, ...] = ()


class BadRow(ValueError):
    """A row that its format does not allow; the text is the reason that is counted."""


@dataclass(frozen=True, slots=True)
class Format:
    kind: Kind
    columns: tuple[str, ...]
    align: Callable[[Row], Record]


def _text(row: Row, column: str, *, empty: bool = False) -> str:
    value = row.get(column)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{column} is not a text")
    if not value.strip() and not empty:
        raise BadRow(f"{column} is empty")
    return value


def _plain(row: Row) -> Record:
    return Record(prompt=(), response=({"role": "assistant", "content": _text(row, "text")},))


def _alpaca(row: Row) -> Record:
    system = _text(row, "system", empty=True)
    question = "\n".join(part for part in (_text(row, "instruction"), _text(row, "input", empty=True)) if part)
    prompt: list[Message] = [{"role": "system", "content": system}] if system else []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRow("history is not a list of [question, answer]")
    for asked, answered in history:
        prompt += [{"role": "user", "content": str(asked)}, {"role": "assistant", "content": str(answered)}]
    prompt.append({"role": "user", "content": question})
    return Record(prompt=tuple(prompt), response=({"role": "assistant", "content": _text(row, "output")},))


def _conversation(column: str, role: str, content: str) -> Callable[[Row], Record]:
    def align(row: Row) -> Record:
        turns = row.get(column)
        if not isinstance(turns, list) or not turns:
            raise BadRow(f"{column} is empty or not a list")
        messages: list[Message] = []
        if isinstance(row.get("system"), str) and row["system"]:
            messages.append({"role": "system", "content": row["system"]})
        for turn in turns:
            messages.append(_message(turn, role, content))
        if all(message["role"] != "user" for message in messages):
            raise BadRow("no message is the user's")
        if messages[-1]["role"] != "assistant":
            raise BadRow("the last message is not the assistant's")
        return Record(prompt=tuple(messages[:-1]), response=(messages[-1],))

    return align


def _message(turn: Any, role: str, content: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get(content), str):
        raise BadRow(f"a message has no text {content}")
    if str(turn.get(role)) not in ROLES:
        raise BadRow(f"unknown role {turn.get(role)}")
    return {"role": ROLES[turn[role]], "content": turn[content]}


def _pair(row: Row) -> Record:
    prompt = ({"role": "user", "content": _text(row, "prompt")},)
    chosen, rejected = ({"role": "assistant", "content": _text(row, name)} for name in ("chosen", "rejected"))
    return Record(prompt=prompt, response=(chosen,), rejected=(rejected,))


# the order is the order of recognition: the more telling columns first
FORMATS: dict[str, Format] = {
    "pairs": Format("pairs", ("prompt", "chosen", "rejected"), _pair),
    "alpaca": Format("messages", ("instruction", "output"), _alpaca),
    "sharegpt": Format("messages", ("conversations",), _conversation("conversations", "from", "value")),
    "messages": Format("messages", ("messages",), _conversation("messages", "role", "content")),
    "text": Format("text", ("text",), _plain),
}
# every column that some format reads, the optional ones included
STANDARD = {column for found in FORMATS.values() for column in found.columns} | {"input", "system", "history"}


def recognise(columns: set[str], kind: Kind) -> str | None:
    """The first format all of whose columns are there; one of the wanted kind goes first."""
    fitting = [name for name, found in FORMATS.items() if set(found.columns) <= columns]
    return next((name for name in sorted(fitting, key=lambda name: FORMATS[name].kind != kind)), None)


def rename(row: Row, columns: dict[str, str]) -> Row:
    """The row with the user's columns under their standard names."""
    if not columns:
        return row
    mapped = {standard: row[own] for standard, own in columns.items() if own in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | mapped
