"""Tool formats: calls come back as they were written, whatever they hold, and no text breaks the reading."""

import json
from typing import Any

import pytest
from conversations import CONVERSATIONS, TOOLS, rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import templates
from factory.data import tools
from factory.data.chat_template import ChatTemplate, Learnt
from factory.data.record import BadRow, Message, ToolCall
from factory.data.tools import FORMATS

NAMES = sorted(FORMATS)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
TRICKY = [
    "</tool_call>",
    "\nAction: x\nAction Input: {}",
    "]",
    '{"name": "a", "parameters": {}}',
    "\\",
    "'\"\n",
    "<|im_end|>",
]
ARGUMENTS = st.dictionaries(TEXTS | st.sampled_from(TRICKY), VALUES | st.sampled_from(TRICKY), max_size=3)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: ToolCall(name=name, arguments=arguments),
        st.from_regex(r"[a-zA-Z0-9_.-]{1,64}", fullmatch=True),
        ARGUMENTS,
    ),
    min_size=1,
    max_size=3,
)
WORDS = ["Action:", "Action Input:", "\n", " ", "{", "}", "[", "]", '"name":', '"arguments":', '"parameters":', '"a"']
WORDS += [",", ";", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "get", "{}", "1"]


@pytest.mark.parametrize("name", NAMES)
@given(calls=CALLS)
@settings(max_examples=60, deadline=None)
def test_calls_come_back(name: str, calls: list[ToolCall]) -> None:
    made = FORMATS[name]
    text = made.calls(calls)
    assert made.parse(text) == calls
    assert made.split(text) == ("", calls)
    assert made.parse(f"{text}\n") == calls
    assert made.split(f"I'll look.{made.text.after_content}{text}") in (("I'll look.", calls), None)


@pytest.mark.parametrize("name", ["default", "qwen", "glm4", "llama3", "mistral"])
def test_text_before_calls_is_the_answer_s_own(name: str) -> None:
    made, calls = FORMATS[name], [ToolCall(name="now", arguments={"zone": "CET"}), ToolCall(name="now", arguments={})]
    assert made.split(f"I'll look.{made.text.after_content}{made.calls(calls)}") == ("I'll look.", calls)
    assert made.parse(f"{made.calls(calls)} and so on") is None


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS | st.lists(st.sampled_from(WORDS)).map("".join))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_the_reading(name: str, text: str) -> None:
    parted = FORMATS[name].split(text)
    assert parted is None or (text.startswith(parted[0]) and parted[1])


@pytest.mark.parametrize("name", NAMES)
def test_long_and_deep_texts_are_read(name: str) -> None:
    deep = '{"a":' * 100_000
    starts = {"default": "Action: a\nAction Input: ", "glm4": "a\n", "llama3": "", "qwen": "<tool_call>\n"}
    one = FORMATS[name].calls([ToolCall(name="a", arguments={})])
    for text in (
        "\n" * 50_000 + "x",
        starts.get(name, "[TOOL_CALLS] [") + deep,
        f"{one}\n" * 5_000 + "x",
        "a\n{" * 20_000,
        " " * 50_000 + "x",
    ):
        assert FORMATS[name].parse(text) is None


@pytest.mark.parametrize("name", ["default", "glm4"])
@pytest.mark.parametrize("bad", ["a\nb", " a", "", "a{"])
def test_a_name_that_the_format_cannot_write_is_a_bad_row(name: str, bad: str) -> None:
    with pytest.raises(BadRow, match="a tool call that the tool format cannot write"):
        FORMATS[name].calls([ToolCall(name=bad, arguments={})])


def test_words_of_the_formats() -> None:
    """Each as the models that it is named for were trained to write it."""
    call = [ToolCall(name="weather", arguments={"town": "Zürich"})]
    assert (
        FORMATS["qwen"].calls(call) == '<tool_call>\n{"name": "weather", "arguments": {"town": "Zürich"}}\n</tool_call>'
    )
    assert FORMATS["llama3"].calls(call) == '{"name": "weather", "parameters": {"town": "Zürich"}}'
    assert FORMATS["mistral"].calls(call) == '[TOOL_CALLS] [{"name": "weather", "arguments": {"town": "Zürich"}}]'
    assert FORMATS["glm4"].calls(call) == 'weather\n{"town": "Zürich"}'
    assert FORMATS["default"].calls(call) == 'Action: weather\nAction Input: {"town": "Zürich"}'


@pytest.mark.parametrize(
    "text", ['[{"name": "a", "arguments": {}}]', '[TOOL_CALLS][{"name": "a", "arguments": {}, "id": "123456789"}]']
)
def test_mistral_s_calls_without_the_special_token_or_with_an_id(text: str) -> None:
    assert FORMATS["mistral"].parse(text) == [ToolCall(name="a", arguments={})]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen", '<tool_call>\n{"name": "a", "arguments": {}}'),
        ("qwen", '<tool_call>\n{"name": "a", "arguments": []}\n</tool_call>'),
        ("llama3", '{"name": "a", "arguments": {}}'),
        ("mistral", '[TOOL_CALLS] [{"name": 1, "arguments": {}}]'),
        ("default", "Action: a\nAction Input: none"),
        ("glm4", "a\n[]"),
    ],
)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    assert FORMATS[name].parse(text) is None


FUNCTIONS = st.fixed_dictionaries(
    {"name": st.from_regex(r"[a-z_]{1,9}", fullmatch=True)}, optional={"description": TEXTS, "parameters": ARGUMENTS}
)


@pytest.mark.parametrize("name", NAMES)
@given(functions=st.lists(FUNCTIONS, min_size=1, max_size=3), calls=CALLS)
@settings(max_examples=25, deadline=None)
def test_the_jinja_says_the_same_words(name: str, functions: list[dict[str, Any]], calls: list[ToolCall]) -> None:
    from factory.templates.chat import chat_template

    made = templates.Template(
        source="x", system="<{{content}}>", user="[{{content}}]", assistant="({{content}})", tools=name
    )
    source = chat_template(made, templates.tool_text(name))
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    expected = f"<{FORMATS[name].describe(functions)}>({FORMATS[name].calls(calls)})"
    assert rendered(source, tools=functions, messages=messages) == expected
    assert rendered(source, tools=[tools.wrapped(tool) for tool in functions], messages=messages) == expected


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_tool_says_is_described(name: str) -> None:
    text = FORMATS[name].describe(TOOLS)
    for tool in TOOLS:
        assert tool["function"]["description"] in text
    assert "town" in text and json.dumps(TOOLS[0]["function"]["parameters"])[1:40].split(":")[0] in text


def test_in_words() -> None:
    given: list[Message] = [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": "I'll see.", "weight": 0.5, "tool_calls": [{"name": "now", "arguments": {}}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Yes."},
    ]
    before = json.dumps(given)
    said = tools.in_words(given, [{"name": "now"}], "qwen")
    assert json.dumps(given) == before
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user", "assistant"]
    assert said[0]["content"] == FORMATS["qwen"].describe([{"name": "now"}])
    assert said[2] == {
        "role": "assistant",
        "content": 'I\'ll see.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "weight": 0.5,
    }
    results = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert said[3] == {"role": "user", "content": results}
    assert [message["role"] for message in tools.in_words(given, [], "qwen", role="tool")] == [
        message["role"] for message in given
    ]


@pytest.mark.parametrize(("name", "order"), [("qwen", ["Be kind.", "now"]), ("llama3", ["now", "Be kind."])])
def test_tools_join_the_system_text(name: str, order: list[str]) -> None:
    system: Message = {"role": "system", "content": "Be kind."}
    for messages, default in (([system], "unused"), ([], "Be kind.")):
        said = tools.in_words(messages, [{"name": "now"}], name, default)
        assert len(said) == 1 and "unused" not in said[0]["content"]
        assert [said[0]["content"].index(text) for text in order] == sorted(
            said[0]["content"].index(text) for text in order
        )
        assert "\n\n" in said[0]["content"]


def test_nothing_to_say_changes_nothing() -> None:
    messages: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tools.in_words(messages, [], "default") == messages


def test_a_chat_template_without_tools_takes_them_in_words() -> None:
    """As the embedded model's: its own ChatML, which writes any role and knows no tools."""
    own = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    assert not Learnt(ChatTemplate(own, {}), frozenset(), "").native
    given = CONVERSATIONS["tool"]["messages"]
    messages = [
        message | {"tool_calls": [each["function"] for each in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in given
    ]
    text = rendered(own, messages=tools.in_words(messages, TOOLS, "default"))
    assert 'Action: weather\nAction Input: {"town": "Bern"}<|im_end|>' in text
    assert 'Observation: {"celsius": 21.5}<|im_end|>' in text and "Be kind.\n\nYou may use these tools:" in text
    text = rendered(own, messages=tools.in_words(messages, TOOLS, "default", role="tool"))
    assert '<|im_start|>tool\nObservation: {"celsius": 21.5}<|im_end|>' in text, "the description promises the word"
    for form in ("qwen", "default"):  # of qwen's form the turn is enough; and nothing is promised without tools
        text = rendered(own, messages=tools.in_words(messages, TOOLS if form == "qwen" else [], form, role="tool"))
        assert '<|im_start|>tool\n{"celsius": 21.5}<|im_end|>' in text
