"""Any row whatever gives a record or a reason, and a record written as an OpenAI row comes back the same."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.data.formats import FORMATS, STANDARD, TAGS, BadRow, Record, align, recognise
from factory.data.formats.media import PARTS
from factory.data.formats.turns import ROLES
from factory.data.record import RowKind

KEYS = ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments"]
KEYS += ["id", "tool_call_id", "weight", "train", "thinking", "type", "text", "image", "image_url", "bytes", "index"]
WORDS = [*ROLES, *PARTS, "text", "<image>", "<think>a</think>", "\n\nHuman: ", "\n\nAssistant: ", "", " ", "true"]
texts = st.text(max_size=8) | st.sampled_from(WORDS) | st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=4)
keys = st.sampled_from(KEYS)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
said = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
plain = said.filter(lambda text: "<" not in text)
arguments = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=5)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)
calls = st.lists(st.fixed_dictionaries({"name": said, "arguments": arguments}), min_size=1, max_size=2)
reasoning = st.fixed_dictionaries({}, optional={"reasoning": plain.map(str.strip)})
weight = st.fixed_dictionaries({}, optional={"weight": st.sampled_from([0.0, 0.5, 2.0])})


@st.composite
def answers(draw: st.DrawFn, *, calling: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": draw(plain), **draw(reasoning), **draw(weight)}
    return message | {"tool_calls": draw(calls)} if calling else message


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(st.text(max_size=5))}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": "user", "content": draw(said)} for _ in range(draw(st.integers(1, 2)))]
        if draw(st.booleans()):
            messages.append(draw(answers(calling=True)))
            names = draw(st.lists(st.none() | said, min_size=1, max_size=2))
            results = [{"role": "tool", "content": draw(st.text(max_size=5))} for _ in names]
            messages += [{**r, "name": name} if name else r for r, name in zip(results, names, strict=True)]
        messages.append(draw(answers(calling=False)))
    return messages


tools = st.lists(
    st.fixed_dictionaries({"name": said, "description": st.text(max_size=5), "parameters": arguments}), max_size=2
)


tagged = st.just({}) | st.dictionaries(st.sampled_from(sorted(TAGS)), st.sampled_from(WORDS), max_size=2)


HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "
PART = {"type": "image", "image": "1"}
# of (messages, another answer, three texts)
SHAPES: dict[str, Callable[[list[Any], Any, list[str]], dict[str, Any]]] = {
    "text": lambda m, other, t: {"text": t[0]},
    "alpaca": lambda m, other, t: {"instruction": t[0], "output": t[1], "history": [[t[1], t[2]]]},
    "alpaca_pairs": lambda m, other, t: {"instruction": t[0], "chosen": t[1], "rejected": t[2]},
    "messages": lambda m, other, t: {"messages": m},
    "messages in json": lambda m, other, t: {"messages": json.dumps(m)},
    "messages with images": lambda m, other, t: {
        "messages": [{"role": "user", "content": [PART, {"type": "text", "text": t[0]}]}, other]
    },
    "kto": lambda m, other, t: {"messages": m, "label": True},
    "sharegpt": lambda m, other, t: {"conversations": [{"from": x["role"], "value": x["content"]} for x in m]},
    "sharegpt_pairs": lambda m, other, t: {"conversations": m[:-1], "chosen": m[-1], "rejected": other},
    "prompt_completion": lambda m, other, t: {"prompt": m[:-1], "completion": m[-1:]},
    "pairs": lambda m, other, t: {"prompt": t[0], "chosen": t[1], "rejected": t[2]},
    "pairs of messages": lambda m, other, t: {"prompt": m[:-1], "chosen": m[-1:], "rejected": other},
    "messages_pairs": lambda m, other, t: {"chosen": m, "rejected": [*m[:-1], other]},
    "prompts": lambda m, other, t: {"prompt": m[:-1], "solution": t[0]},
    "transcripts": lambda m, other, t: {
        "chosen": f"{HUMAN}{t[0]}{ASSISTANT}{t[1]}",
        "rejected": f"{HUMAN}{t[0]}{ASSISTANT}{t[2]}",
    },
}
common = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from([True, 0, "true", 2]),
        "system": texts,
        "tools": tools | tools.map(json.dumps),
        "images": st.lists(st.just("1"), max_size=2) | st.just({"path": "a", "bytes": b"b"}),
    },
)


@st.composite
def rows(draw: st.DrawFn, shape: str) -> dict[str, Any]:
    """A good row, or nearly so, with up to three values, anywhere within, replaced, taken away or doubled."""
    three = draw(st.lists(said, min_size=3, max_size=3))
    row = SHAPES[shape](draw(conversations()), draw(answers(calling=False)), three) | draw(common)
    row = {column: deepcopy(value) for column, value in row.items()}  # each its own: a pair's messages are in two
    for _ in range(draw(st.integers(0, 3))):
        places = [
            (inside, key)
            for inside in containers(row)
            for key in (inside if isinstance(inside, dict) else range(len(inside)))
        ]
        if not places:
            break
        inside, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "remove", "double"]))
        if change == "replace":
            inside[key] = draw(anything)
        elif change == "remove":
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(key, deepcopy(inside[key]))
        else:
            inside[draw(keys | st.sampled_from(sorted(STANDARD)))] = deepcopy(inside[key])
    return row


def containers(value: Any) -> list[Any]:
    if not isinstance(value, (dict, list)):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for part in inner for found in containers(part))]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_row_gives_a_record_or_a_reason(shape: str, data: st.DataObject) -> None:
    row, tags = data.draw(rows(shape)), data.draw(tagged)
    kind = data.draw(st.sampled_from(get_args(RowKind)))
    before = deepcopy(row)
    for name, found in FORMATS.items():
        try:
            record = align(row, name, {}, tags)
        except BadRow as reason:
            assert str(reason)
            continue
        assert not found.lacks(set(row)) or "input" in row, name
        assert_whole(record, found.kind)
    recognised = recognise(set(row), [row], (kind,), tags)
    assert recognised is None or not FORMATS[recognised].lacks(set(row))
    assert repr(row) == repr(before)  # not ==: there are numbers that are none


def assert_whole(record: Record, kind: str) -> None:
    """What the rendering takes for granted."""
    assert (record.label is not None) == (kind == "labelled")
    assert bool(record.rejected) == (kind == "pairs")
    if kind == "text":
        assert not record.prompt
        return
    if kind == "prompts":
        assert not record.response
        record = replace(record, response=({"role": "assistant", "content": "-"},))
    for answer in filter(None, (record.response, record.rejected)):
        messages = [*record.prompt, *answer]
        roles = [message["role"] for message in messages]
        assert "system" not in roles[1:]
        talk = roles[1:] if roles[0] == "system" else roles
        assert talk[0] == "user" and talk[-1] == answer[0]["role"] == "assistant"
        assert ("assistant", "assistant") not in pairwise(talk)
        for message in messages:
            assert isinstance(message["content"], str)
            assert message["content"].strip() or message["role"] in ("system", "tool") or message["tool_calls"]
            assert 0 <= message.get("weight", 1) < math.inf
    for mark, places in (("<image>", record.images), ("<video>", record.videos), ("<audio>", record.audios)):
        marks = sum(message["content"].count(mark) for message in (*record.prompt, *record.response))
        assert all(isinstance(place, str) for place in places)
        assert not places or len(places) == marks


def test_a_row_too_deep_has_a_reason() -> None:
    def deep() -> Any:
        value: Any = {}
        for _ in range(50_000):
            value = {"a": value}
        return [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": value}]},
        ]

    with pytest.raises(BadRow, match="nested too deeply"):
        align({"chosen": deep(), "rejected": deep()}, "messages_pairs", {}, {})


def openai(message: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """The message as OpenAI's API has it."""
    written = dict(message)
    if "tool_calls" in message:
        functions = [
            {**call, "arguments": json.dumps(call["arguments"]) if as_text else call["arguments"]}
            for call in message["tool_calls"]
        ]
        written["tool_calls"] = [{"id": "1", "type": "function", "function": function} for function in functions]
    if "reasoning" in message and as_text:
        written["content"] = f"<think>\n{written.pop('reasoning')}\n</think>\n\n{message['content'].lstrip()}"
    return written


@settings(max_examples=150, deadline=None)
@given(conversations(), tools, st.booleans())
def test_a_record_comes_back_from_an_openai_row(messages: list[Any], tools: list[Any], as_text: bool) -> None:
    row = {
        "messages": [openai(message, as_text) for message in messages],
        "tools": json.dumps(tools) if as_text else [{"type": "function", "function": tool} for tool in tools],
    }
    if as_text:  # the whitespace after a think block is not the answer's
        messages = [
            {**message, "content": message["content"].lstrip()} if "reasoning" in message else message
            for message in messages
        ]
    record = Record(prompt=tuple(messages[:-1]), response=(messages[-1],), tools=tuple(tools))
    assert align(row, "messages", {}, {}) == record
    assert align({"messages": [*record.prompt, *record.response], "tools": record.tools}, "messages", {}, {}) == record
    assert align(row | {"label": True}, "kto", {}, {}) == Record(
        prompt=record.prompt, response=record.response, tools=record.tools, label=True
    )
