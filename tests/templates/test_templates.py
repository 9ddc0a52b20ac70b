"""Named templates: each renders as its golden file says, loses nothing, and is data that is read strictly."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conversations import CONVERSATIONS, SYSTEM, TOOLS, call, rendered
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from factory import templates
from factory.config import tables
from factory.config.refusal import UserError
from factory.data import tools
from factory.data.chat_template import ChatTemplate, Learnt
from factory.templates import slots, types
from factory.templates.chat import chat_template

GOLDEN = Path(__file__).parent / "golden"
NAMES = templates.names()


def golden(name: str) -> str:
    """Every conversation as the template renders it. Write anew: python tests/templates/test_templates.py"""
    shown = {title: CONVERSATIONS[title] for title in CONVERSATIONS if title != "reasoning" or reasons(name)}
    return "".join(
        f"=== {title} ===\n{rendered(templates.read(name), **conversation)}\n" for title, conversation in shown.items()
    )


def reasons(name: str) -> bool:
    return bool(templates.template(name).reasoning)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    assert golden(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_each_template_has_its_golden_file() -> None:
    assert len(NAMES) >= 30
    assert sorted(path.stem for path in GOLDEN.iterdir()) == list(NAMES)


def test_every_model_option_names_a_template() -> None:
    named = {option.config["template"] for option in tables.options("model").values() if "template" in option.config}
    assert named - {"auto"} <= set(NAMES) and "alpaca" in named


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("title", sorted(CONVERSATIONS))
def test_loses_no_text(name: str, title: str) -> None:
    """Every text stands in the rendering, in the order of the messages; a Mistral's tools stand before the system."""
    conversation = CONVERSATIONS[title]
    text, at = rendered(templates.read(name), **conversation), 0
    for message in conversation["messages"]:
        for wanted in [
            message["content"].strip(),
            *(tool["function"]["name"] for tool in message.get("tool_calls", ())),
        ]:
            forms = (wanted, tools.dumped(wanted)[1:-1])
            found = [place for form in forms if (place := text.find(form, at)) >= 0]
            assert found, (wanted, text)
            at = min(found)
    assert all(tool["function"]["description"] in text for tool in conversation.get("tools", ()))


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_grows_at_its_end(name: str) -> None:
    """So that one pass over a conversation trains each answer after exactly what it will be given."""
    messages, source = CONVERSATIONS["two turns"]["messages"], templates.read(name)
    whole = rendered(source, messages=messages)
    for count in (2, 4):
        assert whole.startswith(rendered(source, messages=messages[:count]))
        prompt = rendered(source, messages=messages[:count], add_generation_prompt=True)
        answered = rendered(source, messages=messages[: count + 1])
        assert answered.startswith(prompt) and prompt.endswith(
            templates.template(name).opening.replace("{{eos_token}}", "<eos>").replace("{{bos_token}}", "<bos>")
        )
        last = templates.template(name).reasoning_empty and count == 2  # only the last message shows an empty block
        assert last or whole.startswith(answered)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_ends_with_a_token_that_stops(name: str) -> None:
    """What follows an answer begins with a stop token, the end-of-text token, or nothing that would be trained."""
    template = templates.template(name)
    after = slots.around(template.assistant)[2].strip()
    assert after in ("", "{{eos_token}}", *template.stop) or name == "deepseek_coder"
    assert after.endswith(("", "{{eos_token}}", *template.stop))


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_the_tokenizer_s(name: str) -> None:
    text = rendered(templates.read(name), bos=None, **CONVERSATIONS["two turns"])
    assert "<bos>" not in text and "None" not in text
    assert not any(token in templates.read(name) for token in ("</s>", "<|endoftext|>", "<|begin_of_text|>"))


@pytest.mark.parametrize("name", NAMES)
def test_renders_alike_whatever_the_environment_does_with_white_space(name: str) -> None:
    import json

    plain = ImmutableSandboxedEnvironment(trim_blocks=False, lstrip_blocks=False)
    plain.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    for conversation in CONVERSATIONS.values():
        text = plain.from_string(templates.read(name)).render(bos_token="<bos>", eos_token="<eos>", **conversation)
        assert text == rendered(templates.read(name), **conversation)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_an_unknown_role(name: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]
    with pytest.raises(TemplateError, match="a message of the role critic has no place here"):
        rendered(templates.read(name), messages=messages)
    with pytest.raises(TemplateError, match="the role system has no place here"):
        rendered(templates.read(name), messages=[messages[0], SYSTEM])


@pytest.mark.parametrize("name", NAMES)
def test_a_system_text_without_a_user_is_not_lost(name: str) -> None:
    template = templates.template(name)
    if template.system_place == "first_user":
        with pytest.raises(TemplateError, match="there is none"):
            rendered(templates.read(name), messages=[SYSTEM])
    else:
        assert "Be kind." in rendered(templates.read(name), messages=[SYSTEM])


@pytest.mark.parametrize("name", NAMES)
def test_a_template_says_whether_it_closes_answers(name: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    text = rendered(templates.read(name), messages=messages)
    assert templates.template(name).closes is not text.rstrip().endswith("Hello")


@pytest.mark.parametrize("name", NAMES)
def test_tools_are_native(name: str) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    assert Learnt(ChatTemplate(templates.read(name), special), frozenset(special.values()), "</s>").native


@pytest.mark.parametrize("name", [name for name in NAMES if templates.template(name).tools_place == "system"])
def test_tools_by_the_template_are_tools_in_words(name: str) -> None:
    """One wording: what the jinja renders is what `in_words` makes of the same conversation."""
    template = templates.template(name)
    for title in ("tool", "tools, no system"):
        given = CONVERSATIONS[title]
        messages = [
            message | {"tool_calls": [tool["function"] for tool in message["tool_calls"]]}
            if "tool_calls" in message
            else message
            for message in given["messages"]
        ]
        said = tools.in_words(
            messages, given["tools"], template.tools, template.default_system or "", "tool" if template.tool else "user"
        )
        other = given | {"messages": said, "tools": None}
        if template.calls is None:
            assert rendered(templates.read(name), **other) == rendered(templates.read(name), **given)


def test_arguments_may_be_text_already() -> None:
    spelled = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("now") | {"function": {"name": "now", "arguments": "{}"}}],
    }
    plain = {"role": "assistant", "content": None, "tool_calls": [call("now")]}
    source = templates.read("qwen")
    assert rendered(source, messages=[spelled]) == rendered(source, messages=[plain])


def test_reasoning_is_shown_after_the_last_question() -> None:
    question, thought = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "r", "content": "b"},
    )
    text = rendered(templates.read("qwen3"), messages=[question, thought, question, thought])
    assert text.count("<think>\nr\n</think>\n\nb<|im_end|>") == 1 and text.endswith("</think>\n\nb<|im_end|>\n")
    called = {"role": "assistant", "reasoning_content": "r", "content": "", "tool_calls": [call("now")]}
    result = {"role": "tool", "content": "12"}
    text = rendered(templates.read("qwen3"), messages=[question, called, result, thought])
    assert text.count("<think>\nr\n</think>\n\n") == 2
    prompt = rendered(templates.read("qwen3"), messages=[question], add_generation_prompt=True, enable_thinking=False)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_reasoning_within_an_answer_s_text_is_reasoning() -> None:
    """As programs give it back that keep whole answers; a mark inside a text is no reasoning, and stays."""
    question = {"role": "user", "content": "a"}
    source = templates.read("qwen3")
    apart = {"role": "assistant", "reasoning_content": "r <think> s", "content": "b</think>c"}
    within = {"role": "assistant", "content": "<think>\nr <think> s\n</think>\n\nb</think>c"}
    marked = {"role": "assistant", "content": "b</think>c"}
    for others in ([question], [question, marked, question]):
        assert rendered(source, messages=[*others, within]) == rendered(source, messages=[*others, apart])
    text = rendered(source, messages=[question, within, question, marked])
    assert "r <think> s" not in text and text.count("b</think>c<|im_end|>") == 2


WRONG: dict[str, dict[str, Any]] = {
    "there is no such key": {"sytem": "a"},
    "turn. or .first_user": {"system_place": "end"},
    "required": {"assistant": None, "leave": "assistant"},
    "one place for the content": {"user": "no place"},
    "no place for content": {"user": "{{text}}"},
    "is one in `tool` alone": {"user": "{{content|tojson}}", "tool": "{{content|tojson}}"},
    "no place for content: '{{content.tojson}}b'": {"system": "{{content|tojson}}b"},
    "only special tokens": {"prefix": "{{content}}"},
    "does not begin as the generation prompt": {"generation_prompt": "model:"},
    "what stands before and after": {"reasoning": ["<think>"]},
    "no system turn for the tools": {"system_place": "first_user", "tools_place": "turn"},
}


@pytest.mark.parametrize("why", sorted(WRONG))
def test_files_are_read_strictly(why: str, tmp_path: Path) -> None:
    tree = {"source": "x", "system": "{{content}}", "user": "{{content}}", "assistant": "a{{content}}"} | WRONG[why]
    tree.pop(tree.pop("leave", ""), None)
    path = tmp_path / "made.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises((AssertionError, UserError), match=why):
        types.read(templates.Template, path)


def test_literals_of_any_text_survive() -> None:
    odd = "a'b\"c\\n\\d\n\r\t{% if %}{{x}} }} {# ü 🙂 \\u0041"
    made = templates.Template(
        source="x", system="{{content}}", user="{{content}}", assistant="{{content}}", default_system=odd
    )
    source = chat_template(made, templates.tool_text("default"))
    assert rendered(source, messages=[{"role": "user", "content": "!"}]) == odd + "!"


def test_tools_without_descriptions_or_parameters() -> None:
    for name in NAMES:
        text = rendered(templates.read(name), tools=[{"name": "now"}], messages=[{"role": "user", "content": "a"}])
        assert "now" in text and "None" not in text
    assert TOOLS[0]["function"] == tools.bare(TOOLS[0]) == tools.bare(tools.bare(TOOLS[0]))


if __name__ == "__main__":
    for each in NAMES:
        (GOLDEN / f"{each}.txt").write_text(golden(each), encoding="utf-8")
