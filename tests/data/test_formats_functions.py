"""Tools, their calls and their results, in the shapes in which data sets have them."""

import json
from typing import Any

import pytest

from factory.data.formats import BadRow, align

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "ho"}
TOOL = {"name": "f", "description": "does it", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "f", "arguments": {"x": [1, "ä"]}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1"}


def shared(value: Any, role: str = "function_call") -> Any:
    """The answer that ShareGPT's turn becomes."""
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": role, "value": value}]}
    return align(row, "sharegpt", {}, {}).response[0]


def answered(**turn: Any) -> Any:
    return align({"messages": [USER, {"role": "assistant", **turn}]}, "messages", {}, {}).response[0]


@pytest.mark.parametrize(
    "value",
    [
        CALL,
        [CALL],
        json.dumps(CALL),
        json.dumps([CALL]),
        json.dumps({"name": "f", "arguments": json.dumps(CALL["arguments"])}),
        json.dumps({"name": "f", "parameters": CALL["arguments"]}),
        json.dumps({"type": "function", "function": CALL}),
        f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
        f"<functioncall> {json.dumps(CALL)} <|endoftext|>",
        """<functioncall> {"name": "f", "arguments": '{"x": [1, "ä"]}'} <|endoftext|>""",
        """{"name": "f", "arguments": '{"x": [1, "ä"]}'}""",
    ],
)
def test_a_turn_that_is_a_call(value: Any) -> None:
    assert shared(value) == CALLED


def test_calls_keep_what_is_said_and_thought_besides() -> None:
    text = f"<tool_call>{json.dumps(CALL)}</tool_call>"
    assert shared(f"wait {text}\n{text}") == {**CALLED, "content": "wait", "tool_calls": [CALL, CALL]}
    assert shared(f"<think>well</think>{json.dumps(CALL)}") == {**CALLED, "reasoning": "well"}
    assert shared(f"wait <functioncall> {json.dumps(CALL)}") == {**CALLED, "content": "wait"}
    # an apostrophe within glaive's single quotes is escaped
    quoted = shared("""{"name": "f", "arguments": '{"x": "it\\'s"}'}""")
    assert quoted["tool_calls"][0]["arguments"] == {"x": "it's"}


def test_glaive_writes_calls_into_an_answer() -> None:
    mark = """Wait. <functioncall> {"name": "f", "arguments": '{"x": [1, "ä"]}'} <|endoftext|>"""
    assert shared(mark, "gpt") == {**CALLED, "content": "Wait."}
    told = "the mark <functioncall> comes before a call"
    assert shared(told, "gpt") == {"role": "assistant", "content": told}


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": json.dumps(CALL["arguments"])}}]},
        {"tool_calls": [CALL]},
        {"content": "", "tool_calls": json.dumps([CALL])},
        {"content": "", "function_call": {"name": "f", "arguments": json.dumps(CALL["arguments"])}, "tool_calls": []},
    ],
)
def test_an_answer_with_calls(turn: dict[str, Any]) -> None:
    assert answered(**turn) == CALLED


def test_an_answer_says_something_and_calls() -> None:
    assert answered(content="wait", tool_calls=[CALL], weight=0.5) == {**CALLED, "content": "wait", "weight": 0.5}
    assert answered(content="<think>a</think>", tool_calls=[CALL]) == {**CALLED, "reasoning": "a"}


@pytest.mark.parametrize("arguments", [None, "", " ", "null", {}, "{}"])
def test_a_call_without_arguments(arguments: Any) -> None:
    assert answered(tool_calls=[{"name": "f", "arguments": arguments}])["tool_calls"] == [
        {"name": "f", "arguments": {}}
    ]


def test_a_result_is_whose_its_call_was() -> None:
    calls = [{"id": name, "function": {"name": f"f{name}", "arguments": "{}"}} for name in "ab"]
    row = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {**RESULT, "tool_call_id": "b"},
        {**RESULT, "name": "given", "tool_call_id": "a"},
        {**RESULT, "tool_call_id": "c"},
        {**RESULT, "tool_call_id": None},
        GOOD,
    ]
    results = align({"messages": row}, "messages", {}, {}).prompt[2:]
    assert results == ({**RESULT, "name": "fb"}, {**RESULT, "name": "given"}, RESULT, RESULT)


def test_results_are_in_the_order_of_their_calls() -> None:
    """A template pairs them by that: London's weather was trained as the answer to Paris's call."""
    calls = [{"id": name, "function": {"name": "weather", "arguments": {"of": name}}} for name in "abc"]
    said = [{"role": "tool", "content": f"of {name}", "tool_call_id": name} for name in "cab"]
    row = [USER, {"role": "assistant", "tool_calls": calls}, *said, GOOD]
    results = align({"messages": row}, "messages", {}, {}).prompt[2:]
    assert [result["content"] for result in results] == ["of a", "of b", "of c"]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(("named", "told"), [("ba", "ab"), ("a", "a"), ("b", ""), ("aa", ""), ("az", ""), ("aba", "")])
def test_results_are_of_the_calls_that_they_name(named: str, told: str, as_text: bool) -> None:
    """What is of another call is left out, not trained as the answer to the one that stands there."""
    calls = [{"id": name, "name": "weather", "arguments": {"of": name}} for name in "ab"]
    said = [{"role": "tool", "content": name, "tool_call_id": name} for name in named]
    row = [USER, {"role": "assistant", "tool_calls": json.dumps(calls) if as_text else calls}, *said, GOOD]
    if told:
        results = align({"messages": row}, "messages", {}, {}).prompt[2:]
        assert "".join(result["content"] for result in results) == told
    else:
        with pytest.raises(BadRow, match="not one of each of the calls before them"):
            align({"messages": row}, "messages", {}, {})


def test_results_of_calls_without_ids_are_as_they_come() -> None:
    said = [{"role": "tool", "content": name, "tool_call_id": name} for name in "ba"]
    for turn in ({"tool_calls": [CALL, CALL]}, {"content": "<tool_call>"}):
        results = align({"messages": [USER, {"role": "assistant", **turn}, *said, GOOD]}, "messages", {}, {}).prompt
        assert [result["content"] for result in results[2:]] == ["b", "a"]


def test_a_call_whose_arguments_are_under_no_known_key_is_refused() -> None:
    """It was trained as a call without any."""
    for call in ({"name": "f", "kwargs": {"a": 2}}, {"function": {"name": "f", "kwargs": {"a": 2}}}):
        with pytest.raises(BadRow, match="none of arguments, parameters, args, input"):
            answered(tool_calls=[call])
    bare = {"name": "f", "id": "x", "type": "function", "index": 0}
    assert answered(tool_calls=[bare])["tool_calls"] == [{"name": "f", "arguments": {}}]


def test_a_tool_with_anthropics_key_has_its_parameters() -> None:
    tool = {"name": "f", "description": "does it", "input_schema": TOOL["parameters"]}
    row = {"messages": [USER, GOOD], "tools": [tool]}
    assert align(row, "messages", {}, {}).tools == (TOOL,)


@pytest.mark.parametrize("key", ["args", "input"])
def test_arguments_as_other_libraries_call_them(key: str) -> None:
    """They were trained as calls without any."""
    assert answered(tool_calls=[{"name": "f", key: {"a": 2}, "id": "x"}])["tool_calls"] == [
        {"name": "f", "arguments": {"a": 2}}
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        ({"a": "ä"}, '{"a": "ä"}'),
        ([1, 2], "[1, 2]"),
        (3, "3"),
        ([{"type": "text", "text": "x"}], "x"),
        ([], "[]"),
        ([{"type": "bar", "name": "X"}], '[{"type": "bar", "name": "X"}]'),
    ],
)
def test_a_result_may_be_any_json(content: Any, text: str) -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": content}, GOOD]}
    assert align(row, "messages", {}, {}).prompt[-1] == {"role": "tool", "content": text}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        TOOL,
        json.dumps([TOOL]),
        json.dumps(TOOL),
        [{"type": "function", "function": TOOL}],
        [{**TOOL, "type": "function", "strict": None}],
    ],
)
def test_tools_are_described_in_one_way(tools: Any) -> None:
    for name, row in {
        "messages": {"messages": [USER, GOOD]},
        "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        "alpaca": {"instruction": "hi", "output": "ho"},
        "pairs": {"prompt": "hi", "chosen": "ho", "rejected": "no"},
        "kto": {"messages": [USER, GOOD], "label": True},
    }.items():
        assert align({**row, "tools": tools}, name, {}, {}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert align({"messages": [USER, GOOD], "tools": tools}, "messages", {}, {}).tools == ()


def test_a_tool_may_have_no_more_than_a_name() -> None:
    record = align({"messages": [USER, GOOD], "tools": [{"name": "f", "strict": True}]}, "messages", {}, {})
    assert record.tools == ({"name": "f", "description": "", "parameters": {}, "strict": True},)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("[", "tools is not JSON"),
        ("[NaN]", "tools is not JSON"),
        ('[{"name": "\\ud800"}]', "tools is not JSON"),
        ('[{"name": "f", "name": "g"}]', "tools is not JSON"),
        ("[" * 10_000, "tools is not JSON"),
        (5, "tools is not a list"),
        ("5", "tools is not a list"),
        ([5], "a tool has no name"),
        ([{}], "a tool has no name"),
        ([{"name": " "}], "a tool has no name"),
        ([{"name": "f", "description": 5}], "a tool's description is not a text"),
        ([{"name": "f", "parameters": []}], "a tool's parameters are not an object"),
    ],
)
def test_broken_tools_have_a_reason(tools: Any, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        align({"messages": [USER, GOOD], "tools": tools}, "messages", {}, {})
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ("f(1)", "a function call is not JSON"),
        ("5", "a function call is not JSON"),
        ("[]", "a function call is not JSON"),
        (None, "a function call is not JSON"),
        ("[5]", "a function call has no name"),
        ('{"arguments": {}}', "a function call has no name"),
        ('{"name": "f", "arguments": [1]}', "a call's arguments are not an object"),
        ('{"name": "f", "arguments": "x"}', "a call's arguments is not JSON"),
        ('{"name": "f", "arguments": "[1]"}', "a call's arguments are not an object"),
    ],
)
def test_broken_calls_have_a_reason(calls: Any, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        shared(calls)
    assert str(error.value) == reason
    if calls:
        with pytest.raises(BadRow):
            answered(content="", tool_calls=calls)


def test_a_result_that_is_no_json_has_a_reason() -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": b"x"}, GOOD]}
    with pytest.raises(BadRow, match="a tool's result is not a text"):
        align(row, "messages", {}, {})
