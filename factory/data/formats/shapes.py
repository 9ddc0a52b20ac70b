"""Rows of each shape to records: what a shape needs, and where its messages are."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from factory.data.formats import functions, media, order, turns
from factory.data.formats.turns import Tags, answer
from factory.data.formats.values import Row, dumped, listed, optional, parsed, text
from factory.data.record import BadRow, Message, Record

Align = Callable[..., Record]  # (row, tags=None)
# the columns that any conversation may have besides its own
COMMON = frozenset(["system", "tools", *media.COLUMNS])
INSTRUCTION = COMMON | {"history"}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
NO_SPEAKER = "does not begin with a speaker"  # how a reason ends
_NAMED = 40  # characters of a label that is told
LABELS: dict[Any, bool] = {1: True, "1": True, "true": True, 0: False, "0": False, "false": False}  # True is 1


def plain(row: Row, tags: Tags | None = None) -> Record:
    return Record(prompt=(), response=({"role": "assistant", "content": text(row.get("text"), "text")},))


def alpaca(row: Row, tags: Tags | None = None) -> Record:
    question = _question(row)
    output = text(row.get("output"), "output")
    response = answer(output)
    if response["content"] is output and INSTRUCTION.isdisjoint(row):  # nothing is left to be checked
        return Record(prompt=({"role": "user", "content": question},), response=(response,))
    return _record(row, [*_history(row), {"role": "user", "content": question}], [response], {})


def _question(row: Row) -> str:
    instruction, more = row.get("instruction"), row.get("input")
    if not more:  # the most rows, and the quickest way
        return text(instruction, "instruction")
    return text("\n".join(filter(None, (optional(instruction, "instruction"), optional(more, "input")))), "instruction")


def _history(row: Row) -> list[Message]:
    messages: list[Message] = []
    told = row.get("history")
    if isinstance(told, str) and told.lstrip().startswith("["):  # as a table of texts has it, the empty one too
        told = parsed(told, "history")
    for turn in listed(told, "history") if told else ():
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise BadRow("history is not a list of [question, answer]")
        messages.append({"role": "user", "content": text(turn[0], "a question of the history")})
        messages.append(answer(text(turn[1], "an answer of the history")))
    return messages


def conversation(column: str) -> Align:
    def align(row: Row, tags: Tags | None = None) -> Record:
        found: media.Found = {}
        messages = turns.read(row.get(column), column, tags, found)
        return _record(row, messages[:-1], messages[-1:], found)

    return align


def prompt_completion(row: Row, tags: Tags | None = None) -> Record:
    """TRL's: the completion alone is trained, so that answers within the prompt weigh nothing."""
    found: media.Found = {}
    prompt = _prompt(row.get("prompt"), tags, found)
    completion = _side(row.get("completion"), "completion", tags, found)
    for message in prompt:
        if message["role"] == "assistant":
            message.setdefault("weight", 0.0)
    return _record(row, prompt, completion, found)


# columns that say what is asked, the first that a row has filled
ASKED = ("prompt", "messages", "conversations", "instruction")


def prompts(row: Row, tags: Tags | None = None) -> Record:
    """What is asked, for stages that answer themselves, and the solution, where one is there for rewards to read.

    A conversation's last answer is no part of what is asked: it is the solution where no column is.
    """
    found: media.Found = {}
    answered = ""
    column = max(ASKED, key=lambda name: (bool(row.get(name)), name in row))
    if column == "instruction":
        prompt = [*_history(row), {"role": "user", "content": _question(row)}]
    elif column == "prompt":
        prompt = _prompt(row.get(column), tags, found)
        if prompt[-1]["role"] == "assistant":
            raise BadRow("it ends with an answer, where a prompt alone is read")
    else:
        prompt = turns.read(row.get(column), column, tags, found)
        if prompt[-1]["role"] == "assistant":
            answered = prompt.pop()["content"]
    solution = row.get("solution")
    if isinstance(solution, int | float):
        solution = dumped(solution, "solution")
    whole = _record(row, prompt, [answer("-")], found)  # so that its order is looked at
    return replace(whole, response=(), solution=optional(solution, "solution") or answered)


def pairs(row: Row, tags: Tags | None = None) -> Record:
    found: media.Found = {}
    return _pair(row, _prompt(row.get("prompt"), tags, found), tags, found)


def alpaca_pairs(row: Row, tags: Tags | None = None) -> Record:
    return _pair(row, [*_history(row), {"role": "user", "content": _question(row)}], tags, {})


def sharegpt_pairs(row: Row, tags: Tags | None = None) -> Record:
    found: media.Found = {}
    column = "conversations" if row.get("conversations") else "messages"
    return _pair(row, turns.read(row.get(column), column, tags, found), tags, found)


def _pair(row: Row, prompt: list[Message], tags: Tags | None, found: media.Found) -> Record:
    own: media.Found = {}
    chosen, rejected = (_side(row.get(name), name, tags, own) for name in ("chosen", "rejected"))
    if own:
        raise BadRow("chosen or rejected has images of its own")
    return _record(row, prompt, chosen, found, rejected)


def messages_pairs(row: Row, tags: Tags | None = None) -> Record:
    """Two whole conversations; what they begin with alike is the prompt."""
    found: media.Found = {}
    found_too: media.Found = {}
    chosen = turns.read(row.get("chosen"), "chosen", tags, found)
    rejected = turns.read(row.get("rejected"), "rejected", tags, found_too)
    if found != found_too:
        raise BadRow("chosen and rejected have different images")
    return _forked(row, chosen, rejected, found)


def transcripts(row: Row, tags: Tags | None = None) -> Record:
    """Two conversations written down, each turn after "\\n\\nHuman:" or "\\n\\nAssistant:", as in hh-rlhf."""
    before = optional(row.get("prompt"), "prompt")
    chosen, rejected = (_transcript(before + text(row.get(name), name), name) for name in ("chosen", "rejected"))
    return _forked(row, chosen, rejected, {})


def _transcript(written: str, name: str) -> list[Message]:
    before, *parts = _SPEAKER.split(written)
    if before.strip() or not parts:
        raise BadRow(f"{name} {NO_SPEAKER}")
    return [
        {"role": "user", "content": said.strip()} if speaker == "Human" else answer(said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _forked(row: Row, chosen: list[Message], rejected: list[Message], found: media.Found) -> Record:
    alike = 0
    while alike < min(len(chosen), len(rejected)) and chosen[alike] == rejected[alike]:
        alike += 1
    if alike == len(chosen) == len(rejected):
        raise BadRow("chosen equals rejected")
    ends = chosen[alike:], rejected[alike:]
    if not all(end and end[0]["role"] == "assistant" for end in ends):
        raise BadRow("chosen and rejected answer different prompts")
    return _record(row, chosen[:alike], ends[0], found, ends[1])


# by the column that tells them apart
LABELLED: dict[str, Align] = {
    "messages": conversation("messages"),
    "conversations": conversation("conversations"),
    "completion": prompt_completion,
    "output": alpaca,
}


def labelled(row: Row, tags: Tags | None = None) -> Record:
    shape = max(LABELLED, key=lambda column: (bool(row.get(column)), column in row))
    return replace(LABELLED[shape](row, tags), label=_label(row.get("label")))


def _label(value: Any) -> bool:
    said = value.strip().lower() if isinstance(value, str) else value
    if value is None or said == "":
        raise BadRow("label is missing")
    if isinstance(said, (str, int, float)) and said in LABELS:
        return LABELS[said]
    named = f" {' '.join(said[:_NAMED].split())}" if isinstance(said, str) else ""  # of numbers there may be any number
    raise BadRow(f"label{named} is not true or false")


def _prompt(value: Any, tags: Tags | None, found: media.Found) -> list[Message]:
    value = turns.of_table(value, tags)
    if isinstance(value, (list, tuple)):
        return turns.read(value, "prompt", tags, found)
    return [{"role": "user", "content": text(value, "prompt")}]


def _side(value: Any, name: str, tags: Tags | None, found: media.Found) -> list[Message]:
    """An answer: a text, a message, or several of which the first is the assistant's."""
    value = turns.of_table(value, tags)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return [answer(text(value, name))]
    messages = turns.read(value, name, tags, found)
    if messages[0]["role"] != "assistant":
        raise BadRow(f"{name} does not begin with the assistant's message")
    return messages


def _record(
    row: Row, prompt: list[Message], response: list[Message], found: media.Found, rejected: list[Message] | None = None
) -> Record:
    """The record of a prompt and its answers, after the columns that any conversation may have are added."""
    if rejected is not None and response == rejected:
        raise BadRow("chosen equals rejected")
    more: dict[str, Any] = {}
    common = bool(found) or not COMMON.isdisjoint(row)
    if common:
        prompt = order.with_system(optional(row.get("system"), "system"), prompt)
    whole = [[*prompt, *end] for end in (response, rejected) if end is not None]
    for messages in whole:
        order.check(messages)
    if common:
        more = media.gather(row, found, *whole)
        if row.get("tools"):
            more["tools"] = functions.tools(row["tools"])
    return Record(prompt=tuple(prompt), response=tuple(response), rejected=tuple(rejected or ()), **more)
