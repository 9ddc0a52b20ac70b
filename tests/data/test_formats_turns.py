"""Conversations: roles, keys, reasoning, weights and the order of turns."""

from typing import Any

import pytest

from factory.data.formats import BadRow, align

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "ho"}
SYSTEM = {"role": "system", "content": "be"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
RESULT = {"role": "tool", "content": "1"}


def aligned(*messages: Any, tags: dict[str, str] | None = None, **columns: Any) -> list[Any]:
    record = align({"messages": list(messages), **columns}, "messages", {}, tags or {})
    assert len(record.response) == 1
    return [*record.prompt, *record.response]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "user") for name in ("user", "human", "Human", "prompter")),
        *((name, "assistant") for name in ("assistant", "gpt", "chatgpt", "bing", "bard", "model", " GPT")),
    ],
)
def test_a_role_has_many_names(name: str, role: str) -> None:
    other = {"role": "user" if role == "assistant" else "assistant", "content": "hi"}
    turn = {"role": name, "content": "hi"}
    messages = aligned(*([turn, other] if role == "user" else [other, turn]))
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_a_developer_is_the_system() -> None:
    assert aligned({"role": "developer", "content": "be"}, USER, GOOD)[0] == SYSTEM


@pytest.mark.parametrize("role", ["tool", "observation", "function", "function_response", "tool_response", "ipython"])
def test_a_result_has_many_names(role: str) -> None:
    assert aligned(USER, CALLED, {"role": role, "content": "1"}, GOOD) == [USER, CALLED, RESULT, GOOD]


def test_a_set_may_have_its_own_tags() -> None:
    tags = {
        "role_tag": "who",
        "content_tag": "says",
        "system_tag": "law",
        "user_tag": "assistant",  # whatever it means elsewhere
        "assistant_tag": "bot",
        "function_tag": "asks",
        "observation_tag": "hears",
    }
    turns = [("law", "be"), ("assistant", "hi"), ("asks", '{"name": "f"}'), ("hears", "1"), ("bot", "ho")]
    messages = aligned(*({"who": role, "says": text} for role, text in turns), tags=tags)
    assert messages == [SYSTEM, USER, CALLED, RESULT, GOOD]


def test_a_mix_of_the_usual_keys_is_read() -> None:
    assert aligned({"from": "human", "content": "hi"}, {"from": "gpt", "content": "ho"}) == [USER, GOOD]
    assert aligned({"role": "user", "value": "hi"}, {"role": "assistant", "value": "ho"}) == [USER, GOOD]


def test_texts_alone_are_said_in_turns() -> None:
    assert aligned("hi", "<think>well</think>ho", "hi", "ho") == [USER, {**GOOD, "reasoning": "well"}, USER, GOOD]


def test_several_questions_and_several_results_in_a_row_are_kept_apart() -> None:
    messages = [SYSTEM, USER, USER, CALLED, RESULT, RESULT, USER, GOOD]
    assert aligned(*messages) == messages


def test_an_empty_system_message_stays_and_an_empty_system_column_says_nothing() -> None:
    empty = {"role": "system", "content": ""}
    assert aligned(empty, USER, GOOD, system="") == [empty, USER, GOOD]
    assert aligned(USER, GOOD, system=" ") == [USER, GOOD]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "<think>\nwell\n</think>\n\nho"},
        {"content": "ho", "reasoning_content": "well"},
        {"content": "ho", "thinking": " well\n"},
        {"content": "ho", "reasoning": "well", "reasoning_content": None},
        {"content": "<think>well</think>ho", "reasoning_content": "well"},
        {"content": [{"type": "thinking", "thinking": "well"}, {"type": "text", "text": "ho"}]},
        {"content": [{"type": "reasoning", "text": "well"}, {"type": "output_text", "text": "ho"}]},
    ],
)
def test_reasoning_is_set_apart(turn: dict[str, Any]) -> None:
    assert aligned(USER, {"role": "assistant", **turn})[1] == {**GOOD, "reasoning": "well"}


@pytest.mark.parametrize("block", ["<think></think>", "<think>\n\n</think>\n\n"])
def test_an_empty_think_block_is_no_reasoning(block: str) -> None:
    assert aligned(USER, {"role": "assistant", "content": f"{block}ho"}) == [USER, GOOD]


@pytest.mark.parametrize("content", ["ho <think>well</think>", "<think>well", "a<think></think>b"])
def test_a_think_mark_elsewhere_is_text(content: str) -> None:
    turn = {"role": "assistant", "content": content}
    assert aligned(USER, turn) == [USER, turn]
    assert aligned({"role": "user", "content": f"<think>x</think>{content}"}, GOOD)[0]["content"].startswith("<think>x")


def test_reasoning_is_found_in_every_format() -> None:
    thought, answer = "<think>well</think>\nho", {**GOOD, "reasoning": "well"}
    for name, row in {
        "alpaca": {"instruction": "hi", "output": thought},
        "prompt_completion": {"prompt": "hi", "completion": thought},
        "pairs": {"prompt": "hi", "chosen": thought, "rejected": "no"},
        "transcripts": {
            "chosen": f"\n\nHuman: hi\n\nAssistant: {thought}",
            "rejected": "\n\nHuman: hi\n\nAssistant: x",
        },
        "kto": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": thought}], "label": True},
    }.items():
        assert align(row, name, {}, {}).response == (answer,), name


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"train": True}, None),
        ({"train": False}, 0.0),
        ({"weight": 1}, None),
        ({"weight": 0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"weight": 3, "train": True}, 3.0),
        ({"weight": 3, "train": False}, 0.0),
        ({"weight": None, "train": None}, None),
    ],
)
def test_an_answer_may_say_what_it_counts(keys: dict[str, Any], weight: float | None) -> None:
    answer = aligned({**USER, "weight": 0, "train": False}, {**GOOD, **keys})[1]
    assert answer == (GOOD if weight is None else {**GOOD, "weight": weight})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages is empty or not a list"),
        ({"role": "user"}, "messages is empty or not a list"),
        ("hi", "messages is empty or not a list"),
        ("[hi]", "messages is not JSON"),
        ([5], "a message is not an object"),
        (["hi", GOOD], "a message is not an object"),
        ([USER, "ho"], "a message is not an object"),
        (["hi"], "the last message is not the assistant's"),
        ([{"content": "hi"}], "a message has no role"),
        ([{"role": ["user"], "content": "x"}], "a message has no role"),
        ([{"role": "wizard " + "w" * 90, "content": "x"}], "unknown role wizard " + "w" * 33),
        ([{"role": "user", "content": None}, GOOD], "a message has no text"),
        ([{"role": "user", "content": 5}, GOOD], "a message has no text"),
        ([{"role": "user", "content": ["hi"]}, GOOD], "a message has no text"),
        (
            [{"role": "user", "content": [{"type": "poem", "text": "hi"}]}, GOOD],
            "a message has a part of an unknown type",
        ),
        ([{"role": "user", "content": [{"type": ["text"]}]}, GOOD], "a message has a part of an unknown type"),
        ([{"role": "user", "content": [{"type": "text"}]}, GOOD], "a message has a part of an unknown type"),
        ([{"role": "user", "content": " \n"}, GOOD], "a message of the user is empty"),
        ([{"role": "user", "content": []}, GOOD], "a message of the user is empty"),
        ([USER, {"role": "assistant", "content": ""}], "an answer is empty"),
        ([USER, {"role": "assistant", "content": "<think>a</think>"}], "an answer is empty"),
        ([USER, {**GOOD, "thinking": "a", "reasoning": "b"}], "an answer has two reasonings"),
        ([USER], "the last message is not the assistant's"),
        ([USER, GOOD, USER], "the last message is not the assistant's"),
        ([USER, CALLED, RESULT], "the last message is not the assistant's"),
        ([GOOD], "no message is the user's"),
        ([SYSTEM], "no message is the user's"),
        ([SYSTEM, GOOD], "no message is the user's"),
        ([GOOD, USER, GOOD], "the assistant speaks first"),
        ([SYSTEM, GOOD, USER, GOOD], "the assistant speaks first"),
        ([USER, GOOD, GOOD], "two answers in a row"),
        ([USER, CALLED, GOOD], "two answers in a row"),
        ([USER, RESULT, GOOD], "a tool's result comes without a call"),
        ([RESULT, USER, GOOD], "a tool's result comes without a call"),
        ([SYSTEM, SYSTEM, USER, GOOD], "two system messages"),
        ([USER, SYSTEM, GOOD], "a system message comes late"),
        ([USER, {**GOOD, "train": "yes"}], "train is not true or false"),
        ([USER, {**GOOD, "weight": -1}], "a weight is not a number of at least 0"),
        ([USER, {**GOOD, "weight": True}], "a weight is not a number of at least 0"),
        ([USER, {**GOOD, "weight": float("nan")}], "a weight is not a number of at least 0"),
        ([USER, {**GOOD, "weight": 10**400}], "a weight is not a number of at least 0"),
        ([{**USER, "train": True}, GOOD], "a message that is not the assistant's is to be trained"),
        ([{**USER, "weight": 1}, GOOD], "a message that is not the assistant's is to be trained"),
    ],
)
def test_what_is_no_conversation_has_a_reason(messages: Any, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        align({"messages": messages}, "messages", {}, {})
    assert str(error.value) == reason


def test_a_system_column_that_says_otherwise_is_not_lost() -> None:
    assert aligned(SYSTEM, USER, GOOD, system="be") == [SYSTEM, USER, GOOD]
    with pytest.raises(BadRow, match="two system messages"):
        aligned(SYSTEM, USER, GOOD, system="be otherwise")
