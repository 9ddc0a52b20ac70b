"""Each format is known by its columns and gives the standard record; what a row lacks is counted by its reason."""

from typing import Any

import pytest
from conftest import refusals

from factory.data.formats import FORMATS, BadRow, Record, recognise, rename


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = Record(prompt=(message("user", "hi"),), response=(message("assistant", "ho"),))
LONG = Record(
    prompt=(message("system", "be"), message("user", "a"), message("assistant", "b"), message("user", "hi")),
    response=(message("assistant", "ho"),),
)
ROWS: list[tuple[str, dict[str, Any], Record]] = [
    ("text", {"text": "a text"}, Record(prompt=(), response=(message("assistant", "a text"),))),
    ("alpaca", {"instruction": "hi", "output": "ho"}, CHAT),
    ("alpaca", {"instruction": "hi", "input": "", "output": "ho", "system": None, "history": None}, CHAT),
    ("alpaca", {"instruction": "hi", "output": "ho", "system": "be", "history": [["a", "b"]]}, LONG),
    ("messages", {"messages": [message("user", "hi"), message("assistant", "ho")]}, CHAT),
    ("messages", {"messages": [*LONG.prompt, *LONG.response]}, LONG),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, CHAT),
    (
        "sharegpt",
        {
            "system": "be",
            "conversations": [
                {"from": role, "value": text}
                for role, text in [("human", "a"), ("gpt", "b"), ("user", "hi"), ("assistant", "ho")]
            ],
        },
        LONG,
    ),
    (
        "pairs",
        {"prompt": "hi", "chosen": "ho", "rejected": "no"},
        Record(prompt=CHAT.prompt, response=CHAT.response, rejected=(message("assistant", "no"),)),
    ),
]


@pytest.mark.parametrize(("name", "row", "record"), ROWS)
def test_a_row_is_recognised_and_aligned(name: str, row: dict[str, Any], record: Record) -> None:
    assert recognise(set(row) | {"id", "source"}, FORMATS[name].kind) == name
    assert FORMATS[name].align(row) == record


def test_every_format_has_a_row() -> None:
    assert {name for name, _, _ in ROWS} == set(FORMATS)


def test_an_input_is_appended_to_its_instruction() -> None:
    record = FORMATS["alpaca"].align({"instruction": "Add.", "input": "1, 2", "output": "3"})
    assert record.prompt == (message("user", "Add.\n1, 2"),)


@pytest.mark.parametrize("columns", [set(), {"question", "answer"}, {"instruction"}, {"prompt", "chosen"}, {"Text"}])
def test_other_columns_are_no_format(columns: set[str]) -> None:
    assert recognise(columns, "messages") is None


def test_the_more_telling_columns_win() -> None:
    assert recognise({"text", "messages"}, "messages") == "messages"
    assert recognise({"text", "messages"}, "text") == "text"  # as the stage needs it
    assert recognise({"text", "messages"}, "pairs") == "messages"
    assert recognise({"prompt", "chosen", "rejected", "text"}, "pairs") == "pairs"


@pytest.mark.parametrize(
    ("columns", "row", "renamed"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"instruction": "q", "output": "a"}, {"q": "hi", "a": "ho"}, {"instruction": "hi", "output": "ho"}),
        ({"output": "gold"}, {"output": "bad", "gold": "good"}, {"output": "good"}),
        ({"prompt": "chosen", "chosen": "prompt"}, {"prompt": 1, "chosen": 2}, {"prompt": 2, "chosen": 1}),
        ({"text": "body"}, {"id": 7}, {"id": 7}),
    ],
)
def test_columns_are_mapped(columns: dict[str, str], row: dict[str, Any], renamed: dict[str, Any]) -> None:
    before = dict(row)
    assert rename(row, columns) == renamed
    assert row == before


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("text", {"text": 5}, "text is not a text"),
        ("text", {"text": " \n"}, "text is empty"),
        ("text", {}, "text is not a text"),
        ("alpaca", {"instruction": "", "output": "a"}, "instruction is empty"),
        ("alpaca", {"instruction": "a", "output": None}, "output is not a text"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 3}, "input is not a text"),
        ("alpaca", {"instruction": "a", "output": "b", "history": "x"}, "history is not a list"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history is not a list"),
        ("messages", {"messages": []}, "messages is empty"),
        ("messages", {"messages": {"role": "user"}}, "messages is empty or not a list"),
        ("messages", {"messages": ["hi"]}, "a message has no text content"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "a message has no text content"),
        ("messages", {"messages": [message("tool", "x")]}, "unknown role tool"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ("messages", {"messages": [message("user", "x")]}, "the last message is not the assistant's"),
        ("sharegpt", {"conversations": [{"from": "human", "content": "x"}]}, "a message has no text value"),
        ("pairs", {"prompt": "a", "chosen": "b"}, "rejected is not a text"),
        ("pairs", {"prompt": "a", "chosen": "", "rejected": "c"}, "chosen is empty"),
    ],
)
def test_a_bad_row_has_a_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        FORMATS[name].align(row)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("override", "lacks"),
    [
        ("data.sources.file.format=auto", "question, reply fit no known format"),
        ("data.sources.file.format=alpaca", "lack instruction, output"),
        ("data.sources.file.columns={instruction: question}", "fit no known format"),
        ("data.sources.file.columns={instruction: question, output: answer}", "answer"),
        ("data.sources.file.columns={instruction: question, output: reply, system: sys}", "lack sys"),
        ("data.sources.file.format=csv", "not one of"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_with_its_columns(override: str, lacks: str, here: Any) -> None:
    (here / "rows.jsonl").write_text('{"question": "hi", "reply": "ho"}\n')
    (refusal,) = refusals("data=file", "data.path=rows.jsonl", override, training=False)
    assert refusal.rule == ("bad-value" if "csv" in override else "data-format")
    assert lacks in refusal.wrong
    good = "data.sources.file.columns={instruction: question, output: reply}"
    assert not refusals("data=file", "data.path=rows.jsonl", good, training=False)
