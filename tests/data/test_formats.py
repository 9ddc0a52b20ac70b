"""Each format is known by its columns and gives the standard record; what a row lacks is counted by its reason."""

import json
from typing import Any

import pytest
from conftest import refusals

from factory.data.formats import FORMATS, STANDARD, TAGS, BadRow, Record, align, judged, recognise, rename


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(**turns: str) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns.items()]


USER, GOOD, BAD = message("user", "hi"), message("assistant", "ho"), message("assistant", "no")
CHAT = Record(prompt=(USER,), response=(GOOD,))
OLD = (message("system", "be"), message("user", "a"), message("assistant", "b"))
LONG = Record(prompt=(*OLD, USER), response=(GOOD,))
PAIR = Record(prompt=(USER,), response=(GOOD,), rejected=(BAD,))
LONG_PAIR = Record(prompt=LONG.prompt, response=(GOOD,), rejected=(BAD,))
LIKED = Record(prompt=(USER,), response=(GOOD,), label=True)
SHAREGPT = said(human="hi", gpt="ho")
ASKED = {"instruction": "hi", "system": "be", "history": [["a", "b"]]}
UNTRAINED = (*OLD[:2], message("assistant", "b", weight=0.0), USER)

ROWS: list[tuple[str, dict[str, Any], Record]] = [
    ("text", {"text": "a text"}, Record(prompt=(), response=(message("assistant", "a text"),))),
    ("alpaca", {"instruction": "hi", "output": "ho"}, CHAT),
    ("alpaca", {"instruction": "hi", "input": " ", "output": "ho", "system": None, "history": None}, CHAT),
    ("alpaca", {"instruction": "", "input": "hi", "output": "ho", "system": "", "history": [], "tools": "[]"}, CHAT),
    ("alpaca", {"instruction": "hi", "output": "ho", "history": "[]"}, CHAT),
    ("alpaca", {"instruction": "hi", "output": "ho", "history": "[ ]"}, CHAT),
    ("alpaca", {**ASKED, "output": "ho"}, LONG),
    ("messages", {"messages": [USER, GOOD]}, CHAT),
    ("messages", {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]'}, CHAT),
    ("messages", {"messages": [*LONG.prompt, GOOD], "system": "be"}, LONG),
    ("messages", {"messages": [*LONG.prompt[1:], GOOD], "system": "be"}, LONG),
    ("messages", {"messages": SHAREGPT}, CHAT),
    ("sharegpt", {"conversations": SHAREGPT}, CHAT),
    ("sharegpt", {"conversations": [USER, GOOD]}, CHAT),
    ("sharegpt", {"system": "be", "conversations": [*said(human="a", gpt="b"), *said(user="hi", chatgpt="ho")]}, LONG),
    ("prompt_completion", {"prompt": "hi", "completion": "ho"}, CHAT),
    ("prompt_completion", {"prompt": [USER], "completion": [GOOD]}, CHAT),
    ("prompt_completion", {"prompt": json.dumps([USER]), "completion": json.dumps([GOOD])}, CHAT),
    (
        "prompt_completion",
        {"prompt": "hi", "completion": '[{"role": "admin", "content": "x"}]'},
        Record(prompt=(USER,), response=(message("assistant", '[{"role": "admin", "content": "x"}]'),)),
    ),
    (
        "prompt_completion",
        {"prompt": "hi", "completion": '[{"a": 1}]'},
        Record(prompt=(USER,), response=(message("assistant", '[{"a": 1}]'),)),
    ),
    (
        "prompt_completion",
        {"prompt": [*OLD, USER], "completion": [GOOD, USER, BAD]},
        Record(prompt=UNTRAINED, response=(GOOD, USER, BAD)),
    ),
    ("pairs", {"prompt": "hi", "chosen": "ho", "rejected": "no"}, PAIR),
    ("pairs", {"prompt": [*OLD, USER], "chosen": [GOOD], "rejected": BAD}, LONG_PAIR),
    (
        "pairs",
        {"prompt": json.dumps([*OLD, USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
        LONG_PAIR,
    ),
    (
        "pairs",
        {"prompt": "hi", "system": "be", "chosen": "ho", "rejected": "no"},
        Record(prompt=(OLD[0], USER), response=(GOOD,), rejected=(BAD,)),
    ),
    ("alpaca_pairs", {**ASKED, "chosen": "ho", "rejected": "no"}, LONG_PAIR),
    (
        "sharegpt_pairs",
        {"conversations": said(human="hi"), "chosen": said(gpt="ho")[0], "rejected": said(gpt="no")[0]},
        PAIR,
    ),
    ("sharegpt_pairs", {"messages": [*OLD, USER], "chosen": GOOD, "rejected": BAD, "conversations": None}, LONG_PAIR),
    ("messages_pairs", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
    ("messages_pairs", {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 7.5}, PAIR),
    (
        "messages_pairs",
        {"chosen": [*OLD, USER, GOOD], "rejected": [*OLD[:2], BAD, USER, BAD]},
        Record(prompt=OLD[:2], response=(OLD[2], USER, GOOD), rejected=(BAD, USER, BAD)),
    ),
    ("transcripts", {"chosen": "\n\nHuman: hi\n\nAssistant: ho", "rejected": "\n\nHuman: hi\n\nAssistant: no"}, PAIR),
    ("transcripts", {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " ho", "rejected": " no\n"}, PAIR),
    (
        "transcripts",
        {
            "system": "be",
            "chosen": "Human: a\n\nAssistant: b\n\nHuman: hi\n\nAssistant: ho",
            "rejected": "Human: a\n\nAssistant: b\n\nHuman: hi\n\nAssistant: no",
        },
        LONG_PAIR,
    ),
    ("prompts", {"prompt": "hi"}, Record(prompt=(USER,), response=())),
    ("prompts", {"prompt": [*OLD, USER]}, Record(prompt=LONG.prompt, response=())),
    ("prompts", {"messages": [*OLD, USER], "prompt": None}, Record(prompt=LONG.prompt, response=())),
    ("prompts", {"conversations": said(human="hi")}, Record(prompt=(USER,), response=())),
    ("prompts", {**ASKED, "output": ""}, Record(prompt=LONG.prompt, response=())),
    ("prompts", {"instruction": "", "input": "hi"}, Record(prompt=(USER,), response=())),
    ("prompts", {"prompt": "hi", "solution": "ho"}, Record(prompt=(USER,), response=(), solution="ho")),
    ("prompts", {"prompt": [USER], "solution": 42}, Record(prompt=(USER,), response=(), solution="42")),
    ("prompts", {"prompt": "hi", "solution": None}, Record(prompt=(USER,), response=())),
    ("kto", {"messages": [USER, GOOD], "label": True}, LIKED),
    ("kto", {"conversations": SHAREGPT, "label": 1}, LIKED),
    ("kto", {"prompt": "hi", "completion": "ho", "label": "True"}, LIKED),
    (
        "kto",
        {"instruction": "hi", "output": "ho", "label": "false"},
        Record(prompt=(USER,), response=(GOOD,), label=False),
    ),
]


@pytest.mark.parametrize(("name", "row", "record"), ROWS)
def test_a_row_is_recognised_and_aligned(name: str, row: dict[str, Any], record: Record) -> None:
    assert recognise({*row, "id", "source"}, [row], (FORMATS[name].kind,)) == name
    assert align(row, name, {}, {}) == record
    assert FORMATS[name].align(row) == record
    assert set(row) - {"score_chosen"} <= STANDARD


def test_a_stage_that_answers_itself_reads_answered_rows_as_they_are_where_most_are() -> None:
    kinds = ("messages", "prompts")
    answered, asked = {"instruction": "hi", "output": "ho"}, {"instruction": "hi", "output": ""}
    assert recognise(set(asked), [answered, answered], kinds) == "alpaca"
    assert recognise(set(asked), [answered, asked], kinds) == "prompts"
    assert recognise(set(asked), [answered, answered, asked], kinds) == "alpaca"
    pair = {"prompt": "hi", "chosen": "ho", "rejected": "no"}
    assert recognise(set(pair), [pair], kinds) == "pairs"
    texts = {"prompt": "hi", "text": "hi ho", "solution": "ho"}  # and no text is what such a stage reads
    assert recognise(set(texts), [texts], kinds) == "prompts"
    assert recognise(set(texts), [texts], ("text",)) == "text"
    both = {"instruction": "hi", "output": "ho", "text": "hi ho"}
    assert recognise(set(both), [both], kinds) == "alpaca"
    told = {"messages": [USER, GOOD]}
    assert recognise(set(told), [told, told], kinds) == "messages"
    assert recognise(set(told), [told, {"messages": [USER]}, told], kinds) == "messages"


def test_an_answered_conversation_is_read_as_a_prompt_and_its_solution() -> None:
    """Where its format is asked for by name; every row was bad then."""
    asked = Record(prompt=LONG.prompt, response=(), solution="ho")
    assert align({"messages": [*LONG.prompt, GOOD]}, "prompts", {}, {}) == asked
    assert align({"conversations": SHAREGPT, "solution": 42}, "prompts", {}, {}).solution == "42"
    assert align({"conversations": SHAREGPT, "solution": ""}, "prompts", {}, {}).solution == "ho"
    thought = message("assistant", "ho", reasoning="hm", weight=0.5)
    assert align({"messages": [*LONG.prompt, thought]}, "prompts", {}, {}) == asked
    for row, reason in (
        ({"prompt": [USER, GOOD]}, "it ends with an answer"),  # a column that says to be a prompt
        ({"messages": [USER, GOOD, GOOD]}, "two answers in a row"),
        ({"messages": [GOOD]}, "no message is the user's"),
    ):
        with pytest.raises(BadRow, match=reason):
            align(row, "prompts", {}, {})


def test_every_format_has_a_row() -> None:
    assert {name for name, _, _ in ROWS} == set(FORMATS)


def test_an_input_is_appended_to_its_instruction() -> None:
    record = FORMATS["alpaca"].align({"instruction": "Add.", "input": "1, 2", "output": "3"})
    assert record.prompt == (message("user", "Add.\n1, 2"),)


@pytest.mark.parametrize("columns", [set(), {"question", "answer"}, {"instruction"}, {"prompt", "chosen"}, {"Text"}])
def test_other_columns_are_no_format(columns: set[str]) -> None:
    assert recognise(columns, [dict.fromkeys(columns, "x")], ("messages",)) is None
    assert recognise(columns, [], ("pairs",)) is None


@pytest.mark.parametrize(
    ("columns", "kind", "name"),
    [
        ({"text", "messages"}, "messages", "messages"),
        ({"text", "messages"}, "text", "text"),  # as the stage needs it
        ({"text", "messages"}, "pairs", "messages"),
        ({"prompt", "chosen", "rejected", "text"}, "pairs", "pairs"),
        ({"messages", "label"}, "messages", "messages"),
        ({"messages", "label"}, "labelled", "kto"),
    ],
)
def test_without_rows_the_columns_decide(columns: set[str], kind: Any, name: str) -> None:
    assert recognise(columns, [], (kind,)) == name


def test_the_first_rows_decide_where_columns_do_not() -> None:
    texts = {"prompt": "hi", "chosen": "ho", "rejected": "no"}
    whole = {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    columns = set(texts)
    assert recognise(columns, [texts], ("pairs",)) == "pairs"
    assert recognise(columns, [whole], ("pairs",)) == "messages_pairs"
    assert recognise(columns, [texts, whole, whole], ("pairs",)) == "messages_pairs"
    # no row of the wanted kind can be used, but those of another: better told than a set of broken rows
    ranked = {"conversations": said(human="hi"), "chosen": said(gpt="ho")[0], "rejected": said(gpt="no")[0]}
    assert recognise(set(ranked), [ranked], ("messages",)) == "sharegpt_pairs"
    # a set all of whose first rows are broken is known by its columns
    for broken in ({"rejected": "ho"}, {"rejected": ""}, {"chosen": ""}):
        assert recognise(columns, [texts | broken], ("pairs",)) == "pairs"
    assert recognise({"instruction", "output"}, [{"instruction": "", "output": ""}], ("messages",)) == "alpaca"


def test_a_label_is_read_where_one_is_needed_whatever_it_says() -> None:
    """So that what is told is what is wrong with it."""
    row = {"prompt": "hi", "completion": "ho", "label": "maybe"}
    assert recognise(set(row), [row], ("labelled",)) == "kto"
    assert recognise(set(row), [row], ("messages",)) == "prompt_completion"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([True, False], "kto"),
        (["true", "true"], "kto"),
        ([True, False, None], "kto"),
        ([0, 1, 2, 3], None),
        (["maybe"], None),
        (["good", "bad"], None),
    ],
)
def test_rows_that_judge_their_answers_are_known_by_most_of_their_labels(labels: list[Any], found: str | None) -> None:
    rows = [{"messages": [USER, GOOD], "label": label} for label in labels]
    assert judged({"messages", "label"}, rows) == found
    broken = [{"messages": [], "label": True}] * 9  # they tell nothing
    assert judged({"messages", "label"}, rows + broken) == found
    assert judged({"messages"}, rows) is None


def test_tags_are_needed_to_recognise_a_set_that_has_its_own() -> None:
    row = {"conversations": [{"who": "she", "says": "hi"}, {"who": "he", "says": "ho"}], "text": "both"}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "she", "assistant_tag": "he"}
    assert recognise(set(row), [row], ("messages",)) == "text"
    assert recognise(set(row), [row], "messages", tags) == "sharegpt"
    assert align(row, "sharegpt", {}, tags) == CHAT
    assert set(tags) <= TAGS


def test_what_a_format_lacks_is_the_least_it_could_be_given() -> None:
    assert FORMATS["kto"].lacks({"messages"}) == {"label"}
    assert FORMATS["kto"].lacks({"label", "prompt"}) in ({"messages"}, {"conversations"}, {"completion"})
    assert FORMATS["kto"].lacks({"label", "prompt", "completion", "more"}) == set()
    assert FORMATS["kto"].columns == ("label",)
    assert FORMATS["alpaca"].columns == ("instruction", "output")


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


def test_a_set_with_other_columns_is_aligned_through_its_map() -> None:
    row = {"question": "hi", "chosen": "ho", "rejected": "no", "system": ""}
    assert align(row, "pairs", {"prompt": "question"}, {}) == PAIR


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("text", {"text": 5}, "text is not a text"),
        ("text", {"text": " \n"}, "text is empty"),
        ("text", {}, "text is missing"),
        ("alpaca", {"instruction": "", "output": "a"}, "instruction is empty"),
        ("alpaca", {"instruction": "", "input": " ", "output": "a"}, "instruction is empty"),
        ("alpaca", {"instruction": "a", "output": None}, "output is missing"),
        ("alpaca", {"instruction": "a", "output": "<think></think> "}, "an answer is empty"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 3}, "input is not a text"),
        ("alpaca", {"instruction": "a", "output": "b", "history": "x"}, "history is empty or not a list"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history is not a list of"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x", ""]]}, "an answer of the history is empty"),
        ("alpaca", {"instruction": "a", "output": "b", "system": 1}, "system is not a text"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "completion is empty"),
        ("prompt_completion", {"prompt": [], "completion": "a"}, "prompt is empty or not a list"),
        ("prompt_completion", {"prompt": [USER], "completion": [USER, GOOD]}, "completion does not begin with"),
        ("prompt_completion", {"prompt": [USER, GOOD], "completion": "a"}, "two answers in a row"),
        ("pairs", {"prompt": "a", "chosen": "b"}, "rejected is missing"),
        ("pairs", {"prompt": "a", "chosen": "", "rejected": "c"}, "chosen is empty"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen equals rejected"),
        ("pairs", {"prompt": "a", "chosen": [USER, GOOD], "rejected": "b"}, "chosen does not begin with"),
        ("pairs", {"prompt": "a", "chosen": [GOOD, USER], "rejected": "b"}, "the last message is not the assistant's"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": [BAD, USER]}, "the last message is not the assistant's"),
        ("sharegpt_pairs", {"conversations": SHAREGPT, "chosen": GOOD, "rejected": BAD}, "two answers in a row"),
        ("messages_pairs", {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "chosen equals rejected"),
        ("messages_pairs", {"chosen": [USER, GOOD], "rejected": [OLD[1], BAD]}, "answer different prompts"),
        ("messages_pairs", {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, GOOD]}, "answer different prompts"),
        ("messages_pairs", {"chosen": [GOOD], "rejected": [BAD]}, "no message is the user's"),
        ("messages_pairs", {"chosen": "a", "rejected": "b"}, "chosen is empty or not a list"),
        ("transcripts", {"chosen": "a", "rejected": "b"}, "chosen does not begin with a speaker"),
        ("transcripts", {"chosen": "x\n\nHuman: a", "rejected": "b"}, "chosen does not begin with a speaker"),
        (
            "transcripts",
            {"chosen": "\n\nHuman: hi\n\nAssistant: ", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
            "an answer is empty",
        ),
        ("kto", {"messages": [USER, GOOD], "label": "good"}, "label good is not true or false"),
        ("kto", {"messages": [USER, GOOD], "label": " \n"}, "label is missing"),
        ("kto", {"messages": [USER, GOOD], "label": "much " * 20}, f"label {'much ' * 8}is not true or false"),
        ("kto", {"messages": [USER, GOOD], "label": 2}, "label is not true or false"),
        ("kto", {"messages": [USER, GOOD], "label": None}, "label is missing"),
        ("kto", {"messages": [USER, GOOD], "label": [True]}, "label is not true or false"),
        ("kto", {"prompt": "a", "completion": "", "label": True}, "completion is empty"),
    ],
)
def test_a_bad_row_has_a_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        align(row, name, {}, {})
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("override", "lacks"),
    [
        ("data.sources.file.format=auto", "question, reply fit no known format"),
        ("data.sources.file.format=alpaca", "lack instruction, output"),
        ("data.sources.file.columns={instruction: question}", "fit no known format"),
        ("data.sources.file.columns={instruction: question, output: answer}", "answer"),
        ("data.sources.file.columns={instruction: question, output: reply, system: sys}", "lack sys"),
        ("data.sources.file.format=csv", "it is not auto, text"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_with_its_columns(override: str, lacks: str, here: Any) -> None:
    (here / "rows.jsonl").write_text('{"question": "hi", "reply": "ho"}\n')
    (refusal,) = refusals("data=file", "data.path=rows.jsonl", override, training=False)
    assert refusal.rule == ("bad-value" if "csv" in override else "data-format")
    assert lacks in refusal.wrong
    good = "data.sources.file.columns={instruction: question, output: reply}"
    assert not refusals("data=file", "data.path=rows.jsonl", good, training=False)
