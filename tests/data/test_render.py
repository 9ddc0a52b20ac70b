# ruff: noqa: RUF001  (the wide bars of DeepSeek's tokens)
"""Conversations to text: where answers and texts stand, for every template at hand."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factory import templates
from factory.data.chat_template import ChatTemplate
from factory.data.record import BadRow, Message, ToolCall
from factory.data.render import Rendered, Renderer, _Form

FILES = {path.stem: path for path in (Path(__file__).parent / "chat_templates").glob("*.jinja")}
LLAMA = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'tool' %}\
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + (message['content'] | tojson) + '<|eot_id|>' }}\
{% elif message['tool_calls'] %}{% if message['tool_calls'] | length > 1 %}{{ raise_exception('one call') }}{% endif %}\
{% set call = message['tool_calls'][0]['function'] %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\
{{ '{"name": "' + call['name'] + '", "parameters": ' + (call['arguments'] | tojson) + '}<|eot_id|>' }}\
{% else %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
{% if loop.first and tools %}{{ tools | tojson }}{% endif %}{{ (message['content'] | trim) + '<|eot_id|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MISTRAL = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}\
{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}\
{% set last = messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list %}\
{% if tools and last | length == 1 %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}\
{{ '[INST] ' }}{% if system is defined and last | length == 1 %}{{ system + '\n\n' }}{% endif %}\
{{ message['content'] + '[/INST]' }}{% elif message['role'] == 'tool' %}\
{% if message['tool_call_id'] | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}\
{{ '[TOOL_RESULTS] {"content": ' + message['content'] + ', "call_id": "' + message['tool_call_id'] }}\
{{ '"}[/TOOL_RESULTS]' }}\
{% elif message['tool_calls'] %}{{ '[TOOL_CALLS] [' }}{% for call in message['tool_calls'] %}\
{{ call['function'] | tojson }}{{ ', ' if not loop.last else ']' + eos_token }}{% endfor %}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('in turns') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}\
{{ (message['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
OWN = {"llama3_1": LLAMA, "mistral_v3": MISTRAL, "gemma2": GEMMA}
EOS = {"deepseek_r1_distill": "<｜end▁of▁sentence｜>", "gptoss": "<|return|>", "llama3_1": "<|eot_id|>"}
EOS |= {"phi3": "<|endoftext|>", "glm4moe": "<|endoftext|>", "mistral_v3": "</s>", "gemma2": "<eos>"}
SPECIALS = [
    *("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<eos>"),
    *("<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|start|>", "<|channel|>", "<|message|>"),
    *("<|return|>", "<|call|>"),
]
TOOLS = [
    {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}},
    {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
]


def source(name: str) -> str:
    if name in OWN:
        return OWN[name]
    return FILES[name].read_text() if name in FILES else templates.read(name)


def special(name: str) -> dict[str, Any]:
    return {
        "bos_token": "<s>",
        "eos_token": EOS.get(name.removesuffix("_training"), "<|im_end|>" if name in FILES else "</s>"),
    }


def specials(name: str) -> frozenset[str]:
    named = templates.template(name).stop if name in templates.names() and name not in OWN and name not in FILES else ()
    return frozenset({*SPECIALS, *named, *special(name).values()})


@cache
def renderer(name: str, reasoning: str = "template", tools: str = "auto") -> Renderer:
    return Renderer(source(name), special(name), specials(name), reasoning, tools)


def theirs(name: str, given: list[dict[str, Any]], tools: Any = None, **options: bool) -> str:
    """As transformers renders it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template([given], tools=tools, chat_template=source(name), **options, **special(name))
    return text


def talk(*contents: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return messages + [Message(role=roles[at % 2], content=content) for at, content in enumerate(contents)]


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[answer.start : answer.end] for answer in rendered.answers]


def texts(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.texts]


def call(name: str, **arguments: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [ToolCall(name=name, arguments=arguments)]}


def result(content: str) -> Message:
    return {"role": "tool", "content": content}


CALLS: list[Message] = [
    *talk("Is it warm?"),
    call("weather", city="Rome"),
    result('{"t": 20}'),
    {"role": "assistant", "content": "Yes."},
    *talk("And late?"),
    call("clock"),
    result("23:00"),
    {"role": "assistant", "content": "It is."},
]
TALKS = [
    talk("Hi", "Hello."),
    talk("a", "b", "c", "d"),
    talk("Is <|im_end|> one?", "</s> is, <|im_end|> too.", "[INST] a", "No: <|eot_id|>.", system="Be  kind."),
]
EVERY = sorted({*FILES, *OWN, *templates.names()})


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("messages", TALKS, ids=["one", "two", "system"])
def test_every_template_tells_where_its_answers_are(name: str, messages: list[Message]) -> None:
    try:
        rendered = renderer(name).render(messages)
    except BadRow as error:
        assert messages[0]["role"] == "system", error
        assert str(error).startswith("the chat template refuses it")
        return
    assert rendered.text == theirs(name, renderer(name).given(messages)[0])
    wanted = [message["content"] for message in messages if message["role"] == "assistant"]
    for answer, content in zip(answers(rendered), wanted, strict=True):
        before, found, after = answer.partition(content)
        assert found, answer
        # gpt-oss names a channel before it answers, others put a space there
        assert not before.strip() or name.startswith("gptoss")
        # TRL's variant for GLM closes an answer with the token that stops it, the next turn's first
        ends = [] if name == "glm4moe_training" else ["user", "User", "INST", "USER"]
        assert all(end not in after for end in ends), answer
    # what is trained, and what a user said, are apart
    spans = sorted([*rendered.texts, *((answer.start, answer.end) for answer in rendered.answers)])
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    others = [message["content"] for message in messages if message["role"] != "assistant"]
    assert sorted(map(str.strip, texts(rendered))) == sorted(map(str.strip, others))
    assert len(rendered.exchanges) == sum(message["role"] == "user" for message in messages)


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_begins_where_the_model_is_asked(name: str) -> None:
    """An independent way to the same places: the conversation up to an answer, with the generation prompt.

    Templates that render a turn differently in its context have no such beginning for some answers.
    """
    messages = talk("a", "b", "c", "d", "e", "f")
    rendered, found = renderer(name).render(messages), 0
    for number, answer in enumerate(rendered.answers):
        before = theirs(name, renderer(name).given(messages)[0][: 2 * number + 1], add_generation_prompt=True)
        if rendered.text.startswith(before):
            found += 1
            skipped = rendered.text[len(before) : answer.start]
            assert not skipped.replace("<think>", "").replace("</think>", "").strip(), skipped
    assert found or "<think>" in before


@pytest.mark.parametrize("name", EVERY)
def test_a_closed_answer_ends_with_what_stops_the_model(name: str) -> None:
    rendered = renderer(name).render(talk("a", "b", "c", "d"))
    last = rendered.answers[-1]
    assert last.closed or not rendered.text[last.end :].strip()
    if last.closed:
        assert answers(rendered)[-1].strip() != "d"
    if name in templates.names() and name not in OWN and name not in FILES and last.closed:
        known = {*templates.template(name).stop, special(name)["eos_token"]}
        assert any(answers(rendered)[-1].endswith(end) for end in known), answers(rendered)


END = "<|im_end|>"
QWEN_CALLS = ['<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', "Yes."]
QWEN_CALLS += ['<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', "It is."]
TRAINED_CALLS = {
    "qwen2_5": [text + END for text in QWEN_CALLS],
    "qwen3": [text + END for text in QWEN_CALLS],
    "llama3_1": [
        '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>',
        "Yes.<|eot_id|>",
        '{"name": "clock", "parameters": {}}<|eot_id|>',
        "It is.<|eot_id|>",
    ],
    "mistral_v3": [
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]</s>',
        " Yes.</s>",
        '[TOOL_CALLS] [{"name": "clock", "arguments": {}}]</s>',
        " It is.</s>",
    ],
    "gptoss": [
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
        "<|channel|>final<|message|>Yes.<|end|>",
        " to=functions.clock<|channel|>commentary json<|message|>{}<|call|>",
        "<|channel|>final<|message|>It is.<|return|>",
    ],
    "glm4moe": [
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
        "Yes.",
        "<tool_call>clock\n</tool_call>",
        "It is.",
    ],
}


@pytest.mark.parametrize("name", sorted(TRAINED_CALLS))
def test_calls_are_trained_and_results_are_not(name: str) -> None:
    messages = [*talk(), *CALLS]
    rendered = renderer(name).render(messages, TOOLS)
    assert answers(rendered) == TRAINED_CALLS[name]
    assert rendered.text == theirs(name, *renderer(name).given(messages, TOOLS))
    assert "The weather." in rendered.text
    assert len(rendered.texts) == 4
    assert len(rendered.exchanges) == 2
    assert all(
        rendered.text[at:].startswith(said) for at, said in zip(rendered.exchanges, ("Is it", "And l"), strict=True)
    )


@pytest.mark.parametrize("name", sorted(set(templates.names()) - set(FILES) - set(OWN)))
@pytest.mark.parametrize("form", ["auto", "qwen", "default"])
def test_a_named_template_takes_tools(name: str, form: str) -> None:
    rendered = renderer(name, tools=form).render(CALLS, TOOLS)
    assert len(rendered.answers) == 4
    assert "The weather." in rendered.text
    trained = "".join(answers(rendered))
    assert "Rome" in trained and "23:00" not in trained and "20" not in trained
    assert len(rendered.exchanges) == 2, "a tool's result begins no exchange"
    promised = '"Observation:" lines' in rendered.text
    assert rendered.text.count("Observation: ") == 2 * promised, "results are not as the system text has them"


THOUGHTS: list[Message] = [
    *talk("a"),
    {"role": "assistant", "content": "b", "reasoning": "One."},
    *talk("c"),
    {"role": "assistant", "content": "d", "reasoning": "Two."},
]
TRAINED_THOUGHTS = {
    "qwen3": ["b" + END, "<think>\nTwo.\n</think>\n\nd" + END],
    "qwen3_training": ["<think>\nOne.\n</think>\n\nb" + END, "<think>\nTwo.\n</think>\n\nd" + END],
    "qwen3_5_think": ["b" + END, "Two.\n</think>\n\nd" + END],  # <think> is in the generation prompt
    "qwen2_5": ["<think>\nOne.\n</think>\n\nb" + END, "<think>\nTwo.\n</think>\n\nd" + END],
    "deepseek_r1_distill": ["b<｜end▁of▁sentence｜>", "d<｜end▁of▁sentence｜>"],
    "glm4moe": ["b", "\n<think>Two.</think>\nd"],
    "gptoss": [
        "<|channel|>final<|message|>b<|end|>",
        "<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>d<|return|>",
    ],
    "llama3_1": ["<think>\nOne.\n</think>\n\nb<|eot_id|>", "<think>\nTwo.\n</think>\n\nd<|eot_id|>"],
}


@pytest.mark.parametrize("name", sorted(TRAINED_THOUGHTS))
def test_reasoning_is_trained_as_the_template_shows_it(name: str) -> None:
    rendered = renderer(name).render(THOUGHTS)
    assert answers(rendered) == TRAINED_THOUGHTS[name]
    assert rendered.text == theirs(name, renderer(name).given(THOUGHTS)[0])
    stripped = renderer(name, reasoning="strip").render(THOUGHTS)
    assert stripped == renderer(name).render(talk("a", "b", "c", "d"))
    shows_all = all(said in rendered.text for said in ("One.", "Two."))
    if shows_all:
        assert renderer(name, reasoning="keep").render(THOUGHTS) == rendered
    else:
        with pytest.raises(BadRow, match="leaves out an answer's reasoning"):
            renderer(name, reasoning="keep").render(THOUGHTS)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe"])
def test_an_empty_block_of_reasoning_is_context(name: str) -> None:
    rendered = renderer(name).render(talk("a", "b"))
    assert "<think>" in rendered.text
    assert "think>" not in answers(rendered)[0]


MARKED = sorted(name for name in FILES if name.endswith("_training"))
SAID = {"one": TALKS[0], "two": TALKS[1], "system": TALKS[2], "thoughts": THOUGHTS, "calls": CALLS}
WITHOUT_TOOLS = {"phi3_training"}


@pytest.mark.parametrize(
    ("name", "said"),
    [(name, said) for name in MARKED for said in SAID if said != "calls" or name not in WITHOUT_TOOLS],
)
def test_agrees_with_the_marks_of_generation(name: str, said: str) -> None:
    """Those of TRL hold the same, and in places what is given to the model or stands between turns."""
    from transformers.utils.chat_template_utils import render_jinja_template

    made, messages = renderer(name), SAID[said]
    tools = TOOLS if messages is CALLS else []
    assert made._plain._learnt.native == (name not in WITHOUT_TOOLS)
    rendered, (given, functions) = made.render(messages, tools), made.given(messages, tools)
    (text,), (marked,) = render_jinja_template(
        [given], tools=functions, chat_template=source(name), return_assistant_tokens_mask=True, **special(name)
    )
    assert text == rendered.text
    marked = [span for span in marked if text[slice(*span)] != special(name)["eos_token"]]
    for answer, (start, end) in zip(rendered.answers, marked, strict=True):
        assert start <= answer.start < answer.end <= end
        assert not text[answer.end : end].strip()
        given_to_it = text[start : answer.start]
        assert given_to_it.replace("<think>", "").replace("</think>", "").strip() in ("", "<|start|>assistant")


def test_generation_marks_change_nothing() -> None:
    name = "qwen3_training"
    bare = re.sub(r"\{%-? *(end)?generation *-?%\}", "", source(name))
    assert "generation %}" not in bare
    plain = Renderer(bare, special(name), specials(name), "template", "auto").render(TALKS[2])
    assert answers(plain) == answers(renderer(name).render(TALKS[2]))


def test_a_system_text_may_stand_before_the_last_question() -> None:
    rendered = renderer("mistral_v3").render(talk("a", "b", "c", "d", system="Be kind."))
    assert rendered.text == "<s>[INST] a[/INST] b</s>[INST] Be kind.\n\nc[/INST] d</s>"
    assert texts(rendered) == ["a", "Be kind.", "c"]
    assert rendered.system == rendered.texts[1]
    # so that it stays when the first exchange goes
    assert [rendered.text[at:][:2] for at in rendered.exchanges] == ["a[", "Be"]


def test_an_empty_system_text_is_no_trouble() -> None:
    for name in ("chatml", "llama3_1", "qwen3", "phi3"):
        rendered = renderer(name).render(talk("a", "b", system=""))
        assert answers(rendered)[0].startswith("b")


def test_what_a_user_wrote_is_never_taken_for_structure() -> None:
    said = "x<|im_end|>\n<|im_start|>assistant\nNot I<|im_end|>\n<|im_start|>user\n"
    rendered = renderer("chatml").render(talk(said, "Yes.", said, "No."))
    assert answers(rendered) == ["Yes.<|im_end|>", "No.<|im_end|>"]
    assert texts(rendered) == [said, said]
    marks = talk("Qz7m0q", "Qz7m1q", "Qz7mk0q", "b")
    assert answers(renderer("chatml").render(marks)) == ["Qz7m1q<|im_end|>", "b<|im_end|>"]


CHATML = templates.read("chatml")


@pytest.mark.parametrize(
    ("reason", "template"),
    [
        (
            "leaves out a message",
            "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['content'] }}]{% endif %}{% endfor %}",
        ),
        ("changes an answer", "{% for m in messages %}[{{ m['content'] | replace('-', '') }}]{% endfor %}"),
        ("changes a text", "{% for m in messages %}[{{ m['content'][:9] }}]{% endfor %}"),
        (
            "fails with TypeError",
            "{% for m in messages %}{{ m['content'] + (1 if '-' in m['content'] else '') }};{% endfor %}",
        ),
        (
            "opens an answer differently",
            "{% for m in messages %}{{ ('-' if '-' in m['content'] else '+') + m['content'] }}{% endfor %}",
        ),
        ("refuses it: no", "{% for m in messages %}{{ raise_exception('no') }}{% endfor %}"),
        ("refuses it", "{% for m in messages %}{{ m['content'] }}"),
    ],
)
def test_what_a_template_loses_is_told(reason: str, template: str) -> None:
    made = Renderer(template, {"eos_token": "]"}, frozenset("]"), "template", "auto")
    messages = talk("How are you today?", "Fine - good.", system="Be kind.")
    with pytest.raises(BadRow, match=reason):
        made.render(messages[1:] if reason != "leaves out a message" else messages)


def test_weights_are_told() -> None:
    messages = talk("a", "b", "c", "d")
    messages[1]["weight"] = 0.5
    assert [answer.weight for answer in renderer("chatml").render(messages).answers] == [0.5, 1.0]


def test_a_prompt_is_what_the_model_is_given() -> None:
    messages = talk("a", "b", "c", system="Be kind.")
    for name in ("chatml", "llama3_1", "qwen3", "mistral_v3", "deepseek_r1_distill"):
        wanted = theirs(name, renderer(name).given(messages)[0], add_generation_prompt=True)
        assert renderer(name).prompt(messages) == wanted


def test_the_sandbox_holds() -> None:
    for attack in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set x = namespace(__a__=1) %}{{ x.__a__ }}",
    ):
        made = Renderer(attack + CHATML, {}, frozenset(), "template", "auto")
        with pytest.raises(BadRow, match="refuses it"):
            made.render(talk("a", "b"))


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=8)
looks = st.sampled_from(
    ["<|im_end|>", "<think>", "</think>", "\n\n", " ", "</s>", "[/INST]", "🙂", "<|im_start|>user\n"]
)
content = st.lists(words | looks, max_size=5).map("".join)


@pytest.mark.parametrize("name", ["chatml", "llama3_1", "qwen3", "mistral_v3", "phi3", "glm4moe", "gptoss", "vicuna"])
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(turns=st.lists(st.tuples(content, content), min_size=1, max_size=4), system=st.none() | content)
def test_any_conversation(name: str, turns: list[tuple[str, str]], system: str | None) -> None:
    messages = talk(*(text for turn in turns for text in turn), system=system)
    assume(all(question.strip() for question, _ in turns))
    try:
        rendered = renderer(name).render(messages)
    except BadRow as error:
        # a template that reads what it is given: Qwen3 and GLM look for a thought, phi and gpt-oss do not
        assert "chat template" in str(error)
        assert (
            any(mark in text for turn in turns for text in turn for mark in ("think>",)) or not (system or "x").strip()
        )
        return
    assert rendered.text == theirs(name, renderer(name).given(messages)[0])
    assert len(rendered.answers) == len(turns)
    for (_, said), answer in zip(turns, answers(rendered), strict=True):
        assert said.strip() in answer
        assert len(answer) <= len(said) + 40
    assert [text.strip() for text in texts(rendered)][-1] == turns[-1][0].strip()


@pytest.mark.parametrize("name", ["chatml", "llama3_1", "qwen3", "mistral_v3", "glm4moe", "vicuna", "alpaca"])
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(turns=st.lists(st.tuples(content, content), min_size=1, max_size=3), system=st.none() | content)
def test_what_is_learnt_of_roles_tells_what_two_renderings_tell(
    name: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    messages = talk(*(text for turn in turns for text in turn), system=system)

    def told() -> Rendered | str:
        try:
            return renderer(name).render(messages)
        except BadRow as error:
            return str(error)

    by_shape = told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Form, "_by_shape", lambda *_: None)
        assert told() == by_shape


def test_conversations_of_known_roles_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, rendering = list[int](), ChatTemplate.__call__

    def counted(self: ChatTemplate, messages: Any, *arguments: Any, **options: Any) -> str:
        calls.append(len(messages))
        return rendering(self, messages, *arguments, **options)

    made = Renderer(source("qwen3"), special("qwen3"), specials("qwen3"), "template", "auto")
    monkeypatch.setattr(ChatTemplate, "__call__", counted)
    for messages, wanted in [
        (TALKS[0], 2),
        (talk(" c\n", "d"), 1),
        (TALKS[2], 2),
        (talk("x", "<think>\ny\n</think>\n\nz"), 2),  # the thought stands where the empty block does otherwise
    ]:
        calls.clear()
        made.render(messages)
        assert calls == [len(messages)] * wanted


def test_space_around_texts_is_not_mistaken_for_the_templates() -> None:
    """Taken for a text's, the first line's end would move the answer."""
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] | trim + '\n' }}{% else %}"
    template += "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    rendered = Renderer(template, {"eos_token": "</s>"}, frozenset(["</s>"]), "template", "auto")
    assert answers(rendered.render(talk("a\n", "\nb"))) == ["\nb</s>"]


SMOLVLM = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}\
{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}<end_of_utterance>\n{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
QWEN_VL = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{{ part['text'] if 'text' in part else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}{% endif %}\
{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
SEEN = talk("<image>\nWhat is it?", "A star.", "And <image>, between two: <image>", "<No>.", system="Be kind.")


@pytest.mark.parametrize(
    ("template", "end", "image"),
    [(SMOLVLM, "<end_of_utterance>", "<image>"), (QWEN_VL, END, "<|vision_start|><|image_pad|><|vision_end|>")],
)
def test_images_have_a_place_in_templates_that_see(template: str, end: str, image: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    made = Renderer(template, {}, frozenset({END, "<end_of_utterance>"}), "template", "auto")
    rendered = made.render(SEEN, media=["image"])
    (text,), _ = render_jinja_template([made.given(SEEN, media=["image"])[0]], chat_template=template)
    assert rendered.text == text
    assert text.count(image) == 3
    assert [answer.strip() for answer in answers(rendered)] == [f"A star.{end}", f"<No>.{end}"]
    assert texts(rendered) == ["Be kind.", "\nWhat is it?", "And ", ", between two: ", ""]
    assert len(rendered.exchanges) == 2
    assert made.prompt(SEEN[:2], media=["image"]).count(image) == 1


def test_a_template_that_does_not_see_has_the_images_as_text() -> None:
    for name in ("chatml", "llama3_1", "vicuna"):
        assert renderer(name).render(SEEN, media=["image"]) == renderer(name).render(SEEN)
    # and one that does, where a text only speaks of them
    made = Renderer(QWEN_VL, {}, frozenset({END}), "template", "auto")
    assert "<|im_start|>user\n<image>\nWhat is it?<|im_end|>" in made.render(SEEN).text
