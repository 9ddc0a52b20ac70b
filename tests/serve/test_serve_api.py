"""The API before a tiny model, through the official client: what it gives, and the classes that it raises."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TINY, Serving, room_of, says, serving

from factory.data.tools import FORMATS
from factory.inference.embedded import Model
from factory.inference.types import Done, Request, Ticket, Token
from factory.serve.metrics import Metrics

HI: list[Any] = [{"role": "user", "content": "Hi"}]
TOOL: Any = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": {}}}


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> Iterator[tuple[Any, Any]]:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", "engine.batch=16", *TINY)
    yield room, settings
    room.engine.stop(0)


@pytest.fixture(scope="module")
def served(opened: tuple[Any, Any]) -> Iterator[Serving]:
    with serving(*opened) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Serving) -> Any:
    return served.client()


@pytest.fixture
def speaking(opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Request]]:
    """An engine that says what the test wants; returns the requests that it is sent."""
    return lambda text: says(opened[0], text, monkeypatch)


def test_an_answer_is_the_models_greedy_one(client: Any, opened: tuple[Any, Any]) -> None:
    import torch

    room, _ = opened
    found = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8)
    ids = room.prompts.tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    model = room.engine.model.inner
    given = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    wanted = room.prompts.tokenizer.decode(given[0, len(ids) :], skip_special_tokens=True)
    assert found.choices[0].message.content == wanted and found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), 8)


def test_a_stream_is_the_answer_in_pieces_with_its_usage(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HI, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant" and parts[-1].choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage == whole.usage
    assert len(parts) > 3


def test_several_answers_of_a_seed_differ_and_come_again(client: Any) -> None:
    def asked() -> list[str]:
        found = client.chat.completions.create(model="tiny", messages=HI, n=3, seed=5, temperature=1.5, max_tokens=8)
        assert [choice.index for choice in found.choices] == [0, 1, 2]
        return [choice.message.content for choice in found.choices]

    assert asked() == asked() and len(set(asked())) == 3


def test_a_stop_text_ends_an_answer(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12).choices[0].message.content
    stop = whole[4:6]
    found = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12, stop=[stop]).choices[0]
    assert found.message.content == whole.partition(stop)[0] and found.finish_reason == "stop"


def test_probabilities(client: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=HI, max_tokens=3, logprobs=True, top_logprobs=2)
    told = found.choices[0].logprobs.content
    assert [len(each.top_logprobs) for each in told] == [2, 2, 2]
    assert all(each.logprob == each.top_logprobs[0].logprob < 0 for each in told)
    plain = client.completions.create(model="tiny", prompt="The sea", max_tokens=3, logprobs=2).choices[0].logprobs
    assert len(plain.tokens) == len(plain.token_logprobs) == len(plain.top_logprobs) == 3


def test_completions_of_texts_and_of_tokens(client: Any, opened: tuple[Any, Any]) -> None:
    ids = opened[0].prompts.text("The sea")
    by_text, by_ids = (
        client.completions.create(model="tiny", prompt=prompt, max_tokens=5).choices[0].text
        for prompt in ("The sea", ids)
    )
    several = client.completions.create(model="tiny", prompt=["The sea", "Bread"], n=2, max_tokens=5, echo=True)
    assert by_text == by_ids
    assert [choice.text for choice in several.choices[:2]] == [f"The sea{by_text}"] * 2
    assert all(choice.text.startswith("Bread") for choice in several.choices[2:])


def test_an_echoed_prompt_is_what_was_sent(
    client: Any, speaking: Callable[[str], list[Request]], opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the texts of special tokens, and the spaces before a full stop, which a tokenizer may clean up."""
    speaking("!")
    tokenizer, text = opened[0].prompts.tokenizer, "<|im_start|>user\nHi , you .<|im_end|>"
    monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", True)
    ids = tokenizer(text)["input_ids"]
    for prompt in (text, ids, [text], [ids]):
        found = client.completions.create(model="tiny", prompt=prompt, echo=True)
        assert found.choices[0].text == f"{text}!"


@pytest.mark.parametrize(("words", "most"), [((), 16), (("generation.max_tokens=5",), 5)])
def test_a_completion_has_the_length_that_was_set_or_openais(
    words: tuple[str, ...], most: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, settings = room_of("serve", f"model.path={tiny_model}", "serve.name=tiny", *TINY[:-1], *words)
    seen = says(room, "So.", monkeypatch)
    with serving(room, settings) as found:
        client = found.client()
        client.completions.create(model="tiny", prompt="The sea")
        client.completions.create(model="tiny", prompt="The sea", max_tokens=7)
    room.engine.stop(0)
    assert [request.sampling.max_tokens for request in seen] == [most, 7]


def test_a_completion_begins_with_the_space_after_its_prompt(
    client: Any, opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened[0].prompts.stops  # those of its own tokenizer
    monkeypatch.setattr(opened[0].prompts, "tokenizer", tiny.sentencepiece())
    monkeypatch.setattr(type(opened[0].engine), "submit", lambda _, asked, tell: submitted(asked, tell))

    def submitted(asked: Request, tell: Callable[[Any], None]) -> Ticket:
        tell(Token(4))
        tell(Done("stop"))
        return Ticket(asked, tell)

    for more, text in (({}, " is"), ({"echo": True}, "The sea is")):
        assert client.completions.create(model="tiny", prompt=[2, 3], **more).choices[0].text == text


def test_embeddings_are_of_length_one_in_both_forms(client: Any) -> None:
    found = client.embeddings.create(model="tiny", input=["The sea", "Bread"])  # the client asks in base64
    plain = client.embeddings.create(model="tiny", input="The sea", encoding_format="float")
    one, other = (each.embedding for each in found.data)
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-5)
    assert one == pytest.approx(plain.data[0].embedding, abs=1e-6) and one != other and len(one) == 32


def test_models_health_and_metrics(client: Any, served: Serving) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    tiny = client.models.retrieve("tiny")
    assert (tiny.max_model_len, tiny.input_modalities, tiny.tool_calls) == (256, ["text"], True)
    with served.http() as http:
        assert http.get("/health").json() == {"status": "ok"}
        http.get("/made/up")
        text = http.get("/metrics").text
    for wanted in ("factory_generated_tokens_total", 'path="/v1/chat/completions",status="200"', 'path="other"'):
        assert wanted in text
    assert "/made/up" not in text


BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "a field that nothing reads": ({"extra_body": {"top_kk": 3}}, "top_kk"),
    "a value out of range": ({"temperature": -1}, "temperature"),
    "a penalty that is not there": ({"presence_penalty": 1.0}, "presence_penalty"),
    "a role that is none": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages.0.role"),
    "no message": ({"messages": []}, "messages"),
    "a message of nothing": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a system message at the end of a talk that the template does not take": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        None,
    ),
    "an image": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}
            ]
        },
        "messages.0.content",
    ),
    "an image made smaller": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
                    ],
                }
            ]
        },
        "messages.0.content.0.image_url.detail",
    ),
    "too long": ({"messages": [{"role": "user", "content": "Hi " * 300}]}, "messages"),
    "a tool nobody offered": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
    ),
    "arguments that are no object": (
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "x", "arguments": "[1]"}},
                    ],
                },
            ]
        },
        "messages.1.tool_calls.0.function.arguments",
    ),
    "a text with an image in one part": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Hi", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                }
            ]
        },
        "messages.0.content.0",
    ),
    "an image with a text in one part": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "text": "Hi", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                }
            ]
        },
        "messages.0.content.0",
    ),
    "a call that a question answers": ({"messages": [{**HI[0], "tool_call_id": "a"}]}, "messages.0.tool_call_id"),
    "thoughts of who asks": ({"messages": [{**HI[0], "reasoning_content": "Hm."}]}, "messages.0.reasoning_content"),
    "a schema for what is no JSON": (
        {"response_format": {"type": "text", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        "response_format",
    ),
    "a name without end": ({"messages": [{**HI[0], "name": "a" * 65}]}, "messages.0.name"),
    "half a character": ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
    "a length in two ways": ({"max_completion_tokens": 3}, None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_400_with_what_is_wrong(name: str, client: Any, served: Serving) -> None:
    changes, param = BAD[name]
    body = {"model": "tiny", "messages": HI, "max_tokens": 2, **changes}
    if name == "half a character":  # which the client cannot send
        with served.http() as http:
            kind = {"Content-Type": "application/json"}
            found = http.post("/v1/chat/completions", content=json.dumps(body), headers=kind)
        assert found.status_code == 400 and found.json()["error"]["param"] == "messages.0.content"
        return
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**body)
    told: Any = raised.value.body
    assert told["message"] and (param is None or told["param"] == param), told


def test_what_clients_send_of_themselves_is_taken(client: Any, speaking: Callable[[str], list[Request]]) -> None:
    """An answer as it was given, a function as OpenAI's helpers make it, and fields that say nothing."""
    speaking("So.")
    answer = client.chat.completions.create(model="tiny", messages=HI).choices[0].message.model_dump()
    tool = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    last = {**HI[0], "name": "ann", "tool_calls": [], "tool_call_id": "", "reasoning_content": None}
    found = client.chat.completions.create(model="tiny", messages=[*HI, answer, last], tools=[tool])
    assert found.choices[0].message.content == "So."


def test_a_field_that_is_known_and_not_there_is_told_to_be_left_out(served: Serving) -> None:
    """Not that it `should be None`, in the words of the library that reads the request."""
    with served.http() as http:
        for path, field, value in (
            ("completions", "suffix", "y"),
            ("completions", "logit_bias", {"1": 2}),
            ("embeddings", "dimensions", 3),
        ):
            body = {"model": "tiny", "prompt" if path == "completions" else "input": "x", field: value}
            told = http.post(f"/v1/{path}", json=body).json()["error"]
            assert told["message"] == f"{field}: this server does not have it: leave it out." and told["param"] == field


def test_what_is_too_long_to_be_embedded_is_told_of_no_answer(client: Any, opened: tuple[Any, Any]) -> None:
    context = opened[0].context
    assert client.embeddings.create(model="tiny", input=[5] * context).data
    with pytest.raises(openai.BadRequestError, match="more than the context of 256") as raised:
        client.embeddings.create(model="tiny", input=[5] * (context + 1))
    assert (raised.value.param, raised.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match="needs room for an answer"):
        client.completions.create(model="tiny", prompt=[5] * context)


def test_an_unknown_model_is_a_404(client: Any) -> None:
    for ask in (client.chat.completions, client.completions):
        words = {"messages": HI} if ask is client.chat.completions else {"prompt": "Hi"}
        with pytest.raises(openai.NotFoundError, match=r"Served are: tiny"):
            ask.create(model="gpt", **words)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff", 400), (b'{"a":' * 3000, 400), (b"[]", 400), (b'{"model": NaN}', 400), (b"", 400)],
)
def test_what_is_no_request_is_told_so(body: bytes, status: int, served: Serving) -> None:
    with served.http() as http:
        found = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert found.status_code == status and found.json()["error"]["message"]
        assert http.get("/nowhere").json()["error"]["code"] == "not_found"
        assert http.get("/v1/chat/completions").status_code == 405


def test_a_called_tool_is_told_apart(client: Any, speaking: Callable[[str], list[Request]]) -> None:
    text = FORMATS["default"].calls([{"name": "look_up", "arguments": {"word": "ebb"}}])
    speaking(f"Let me see.\n{text}")
    found = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL]).choices[0]
    (call,) = found.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"word": "ebb"})
    assert found.finish_reason == "tool_calls" and found.message.content == "Let me see."
    streamed = list(client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], stream=True))
    deltas = [chunk.choices[0].delta for chunk in streamed]
    assert [delta.tool_calls[0].function.name for delta in deltas if delta.tool_calls] == ["look_up"]
    none = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], tool_choice="none").choices[0]
    assert none.message.tool_calls is None and "Action" in none.message.content


def test_nothing_of_a_stop_text_is_told_beside_tools(client: Any, speaking: Callable[[str], list[Request]]) -> None:
    """Where the answer has a special token too, whose text hid how much was cut."""
    speaking("<|endoftext|>Let me STOP here")
    found = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], stop=["STOP"]).choices[0]
    assert (found.message.content, found.finish_reason) == ("Let me ", "stop")


def test_a_call_is_begun_where_it_is_required(client: Any, speaking: Callable[[str], list[Request]]) -> None:
    seen = speaking('{"word": "ebb"}')
    choice = {"type": "function", "function": {"name": "look_up"}}
    found = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], tool_choice=choice).choices[0]
    assert found.message.tool_calls[0].function.name == "look_up" and not found.message.content
    plain = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL])
    assert plain.choices[0].message.tool_calls is None
    assert len(seen[0].ids) > len(seen[1].ids)
    speaking("the sea's fall")  # which are no arguments: nothing of what was said for the model is kept back
    found = client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], tool_choice=choice).choices[0]
    assert (found.message.tool_calls, found.finish_reason) == (None, "stop")
    assert found.message.content.startswith("Action: look_up") and found.message.content.endswith("the sea's fall")


def test_one_of_several_tools_is_not_required_of_a_model_that_begins_with_the_name(
    client: Any, speaking: Callable[[str], list[Request]], opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened[0].prompts, "tool_format", FORMATS["glm4"])
    seen, second = speaking('{"word": "ebb"}'), {**TOOL, "function": {**TOOL["function"], "name": "spell"}}
    with pytest.raises(openai.BadRequestError, match="name one, by tool_choice=") as raised:
        client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL, second], tool_choice="required")
    assert raised.value.param == "tool_choice" and not seen
    named = {"type": "function", "function": {"name": "spell"}}
    for tools, choice, name in (([TOOL], "required", "look_up"), ([TOOL, second], named, "spell")):
        found = client.chat.completions.create(model="tiny", messages=HI, tools=tools, tool_choice=choice).choices[0]
        assert [call.function.name for call in found.message.tool_calls] == [name]


def test_a_result_of_a_tool_is_read(client: Any, speaking: Callable[[str], list[Request]], opened: Any) -> None:
    seen = speaking("It falls.")
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "ebb"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "falls"},
    ]
    client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
    text = opened[0].prompts.tokenizer.decode(seen[0].ids)
    assert "Action: look_up" in text and "<|im_start|>tool\nObservation: falls" in text


def test_results_are_read_by_the_calls_that_they_name(
    client: Any, speaking: Callable[[str], list[Request]], opened: Any
) -> None:
    """Several calls are answered as they come; the chat template pairs them by their order alone."""
    seen = speaking("So.")
    calls = [
        {"id": name, "type": "function", "function": {"name": "look_up", "arguments": f'{{"word": "{name}"}}'}}
        for name in ("ebb", "flow")
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ("flow", "ebb")]
    asked = [*HI, {"role": "assistant", "content": None, "tool_calls": calls}]
    client.chat.completions.create(model="tiny", messages=[*asked, *results], max_tokens=1)
    text = opened[0].prompts.tokenizer.decode(seen[0].ids)
    assert 0 < text.index("of ebb") < text.index("of flow")
    for wrong in ([results[0]], [{**results[0], "tool_call_id": "tide"}], [results[1], results[1]]):
        with pytest.raises(openai.BadRequestError, match="one of each of the calls") as raised:
            client.chat.completions.create(model="tiny", messages=[*asked, *wrong])
        assert raised.value.param == "messages.2.tool_call_id"


def test_json_is_held_to_or_refused(client: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    try:
        import xgrammar  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(openai.BadRequestError, match="the extra `grammar`"):
            client.chat.completions.create(model="tiny", messages=HI, response_format=form)
        return
    found = client.chat.completions.create(model="tiny", messages=HI, response_format=form, max_tokens=60)
    assert json.loads(found.choices[0].message.content)["n"] in (1, 2)
    any_object = {"type": "json_object"}
    found = client.chat.completions.create(model="tiny", messages=HI, response_format=any_object, max_tokens=60)
    assert found.choices[0].message.content.startswith(("{}", '{"'))


def test_what_is_held_to_json_calls_no_tools(client: Any) -> None:
    """The grammar has no place for a call: the tools would be told to the model in vain."""
    form: Any = {"type": "json_object"}
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        client.chat.completions.create(model="tiny", messages=HI, tools=[TOOL], response_format=form)


def test_sixteen_clients_get_what_each_alone_gets(client: Any) -> None:
    questions = [[{"role": "user", "content": f"Question {number} of {number * 7}"}] for number in range(16)]

    def asked(messages: Any) -> str:
        return client.chat.completions.create(model="tiny", messages=messages, max_tokens=10).choices[0].message.content

    alone = [asked(each) for each in questions]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(asked, questions)) == alone


def test_a_client_that_leaves_frees_its_place(served: Serving, client: Any, opened: tuple[Any, Any]) -> None:
    import time

    stream = client.chat.completions.create(model="tiny", messages=HI, max_tokens=200, stream=True)
    next(iter(stream))
    stream.close()
    engine, end = opened[0].engine, time.monotonic() + 10
    while engine.count().running and time.monotonic() < end:
        time.sleep(0.005)
    before = engine.count().tokens
    time.sleep(0.05)
    assert engine.count().running == 0 and engine.count().tokens == before


def test_one_that_waits_for_a_whole_answer_and_leaves_frees_it_too(served: Serving, opened: tuple[Any, Any]) -> None:
    import time

    import httpx

    engine = opened[0].engine
    start = engine.count().tokens
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        body = {"model": "tiny", "prompt": "The sea", "max_tokens": 240, "n": 8, "temperature": 1}
        http.post("/v1/completions", json=body, timeout=0.05)
    end = time.monotonic() + 10
    while engine.count().running and time.monotonic() < end:
        time.sleep(0.005)
    assert engine.count().running == 0 and engine.count().tokens - start < 8 * 240


def test_one_whose_stream_has_not_begun_and_leaves_frees_its_place(
    served: Serving, opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tools a stream begins when the answer is whole; others wait for a place."""
    import time

    import httpx

    engine, original = opened[0].engine, Model.logits

    def slow(*given: Any) -> Any:
        time.sleep(0.02)
        return original(*given)

    monkeypatch.setattr(Model, "logits", slow)
    start = engine.count().tokens
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        body = {"model": "tiny", "messages": HI, "tools": [TOOL], "stream": True, "max_tokens": 60}
        http.post("/v1/chat/completions", json=body, timeout=0.1)
    end = time.monotonic() + 10
    while engine.count().running and time.monotonic() < end:
        time.sleep(0.005)
    assert engine.count().running == 0 and engine.count().tokens - start < 30


def test_rows_of_a_client_that_left_are_not_read(
    served: Serving, opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    import httpx

    read, original = list[int](), Model.states

    def slow(self: Model, ids: Any) -> Any:
        time.sleep(0.02)
        read.append(len(ids))
        return original(self, ids)

    monkeypatch.setattr(Model, "states", slow)
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json={"model": "tiny", "input": ["The sea"] * 60}, timeout=0.1)
    time.sleep(0.2)
    seen = len(read)
    time.sleep(0.1)
    assert len(read) == seen < 60


def test_a_key_is_asked_for(opened: tuple[Any, Any]) -> None:
    with serving(*opened, key="s3cret") as found:
        for wrong in ("none", "s3cre", "s3cret2", "é"):
            with found.http() as http:
                headers = {"Authorization": f"Bearer {wrong}".encode()}
                assert http.get("/v1/models", headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            found.client().chat.completions.create(model="tiny", messages=HI)
        assert found.client("s3cret").models.list().data
        with found.http() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/metrics").status_code == 401


def test_an_unknown_address_method_or_body_is_told_what_to_do(served: Serving) -> None:
    asked = '{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    chat, plain, js = "/v1/chat/completions", {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}
    wanted = [
        (("GET", "/v1/chat/completion"), {}, 404, "did you mean /v1/chat/completions?"),
        (("POST", "/chat/completions/"), {"content": asked, "headers": js}, 404, "did you mean /v1/chat/completions?"),
        (("GET", "/docs"), {}, 404, "`GET /`"),
        (("DELETE", "/v1/models"), {}, 405, "takes GET, not DELETE"),
        (("POST", chat), {"content": asked}, 415, "Content-Type: application/json"),
        (("POST", chat), {"content": asked, "headers": plain}, 415, "'text/plain'"),
        (("POST", chat), {"content": '{"a": 1', "headers": js}, 400, "at character 7"),
        (("POST", chat), {"content": b"\xff", "headers": js}, 400, "UTF-8"),
        (("POST", chat), {"content": "[]", "headers": js}, 400, "no JSON object"),
        (("POST", chat), {"headers": js}, 400, "no JSON object"),
    ]
    with served.http() as http:
        for address, more, status, hint in wanted:
            found = http.request(*address, **more)
            error = found.json()["error"]
            assert (found.status_code, error["type"]) == (status, "invalid_request_error")
            assert hint in error["message"], error
        here = http.get("/").json()
        assert here["addresses"][chat] == ["POST"] and here["addresses"]["/v1/models"] == ["GET"]
        assert http.get("/openapi.json").status_code == 200 and "/v1/models" in here["is"]


def test_why_the_server_failed_is_told_nobody(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Metrics) -> bytes:
        raise RuntimeError("https://me:hunter2@host")

    monkeypatch.setattr(Metrics, "text", fails)
    with served.http() as http:
        found = http.get("/metrics")
    assert found.status_code == 500 and found.json()["error"]["code"] == "internal_error"
    assert "hunter2" not in found.text and "RuntimeError" not in found.text


def test_a_body_has_a_limit(opened: tuple[Any, Any]) -> None:
    with serving(*opened, max_body=2000) as found, found.http() as http:
        big = json.dumps({"model": "tiny", "prompt": "x" * 3000})

        def parts() -> Iterator[bytes]:
            yield big.encode()

        for content in (big, parts()):  # whose size is told, and whose is not
            answer = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
        with pytest.raises(openai.APIStatusError) as raised:
            found.client().completions.create(model="tiny", prompt="x" * 3000)
        assert raised.value.status_code == 413


def test_no_page_of_another_site_may_read_answers(served: Serving) -> None:
    with served.http() as http:
        found = http.get("/v1/models", headers={"Origin": "https://evil.example"})
        asked = http.options("/v1/models", headers={"Origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in {**found.headers, **asked.headers})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8000", 403),
        ("evil.localhost.example", 403),
        ("[", 403),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7", 200),
        ("localhost:8000", 200),
        ("host.docker.internal:8000", 200),
    ],
)
def test_without_a_key_it_is_not_asked_by_the_name_of_another_site(host: str, status: int, served: Serving) -> None:
    """Which could be made to stand for this machine, and its page then reads answers as its own (DNS rebinding)."""
    with served.http() as http:
        found = http.get("/v1/models", headers={"Host": host})
        assert found.status_code == status
        assert status == 200 or found.json()["error"]["code"] == "host_not_allowed"


def test_with_a_key_it_is_asked_by_any_name(opened: tuple[Any, Any]) -> None:
    with serving(*opened, key="s3cret") as found, found.http() as http:
        headers = {"Host": "models.example", "Authorization": "Bearer s3cret"}
        assert http.get("/v1/models", headers=headers).status_code == 200


# --- whatever is sent, the server does not fail

_NAMES = (
    *("model", "messages", "prompt", "input", "role", "content", "type", "text", "image_url", "url", "stop", "n"),
    *("temperature", "top_p", "seed", "max_tokens", "stream", "logprobs", "top_logprobs", "tools", "tool_choice"),
    *("function", "name", "parameters", "arguments", "tool_calls", "response_format", "encoding_format", "echo"),
)
_WORDS = st.one_of(
    st.sampled_from(["tiny", "user", "assistant", "tool", "system", "text", "function", "Hi", "", "auto", "\x00", "é"]),
    st.text(max_size=5),
)
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(-1, 3), _WORDS, st.just(2**70))
_ANY = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)),
    max_leaves=8,
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.one_of(_WORDS, _ANY)}
    ),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    path=st.sampled_from(["chat/completions", "completions", "embeddings", "score"]),
    messages=st.one_of(_MESSAGES, _ANY),
    text=st.one_of(_WORDS, st.lists(st.integers(-1, 600), max_size=4), _ANY),
    more=st.dictionaries(st.sampled_from(_NAMES), _ANY, max_size=2),
)
def test_whatever_is_sent_the_server_does_not_fail(
    path: str, messages: Any, text: Any, more: dict[str, Any], served: Serving
) -> None:
    own = {"chat/completions": "messages", "score": "messages", "completions": "prompt", "embeddings": "input"}[path]
    body = {"model": "tiny", own: messages if own == "messages" else text}
    body |= {"max_tokens": 1} if "completions" in path else {}
    with served.http() as http:
        found = http.post(
            f"/v1/{path}",
            content=json.dumps({**body, **more}),
            headers={"Content-Type": "application/json"},
        )
    assert found.status_code in (200, 400, 404, 429), found.text
    if found.status_code != 200:
        assert found.json()["error"]["message"]


def test_a_score_of_answers_without_a_question_is_refused(served: Serving) -> None:
    answer = {"role": "assistant", "content": "Hello."}
    with served.http() as http:
        found = http.post("/v1/score", json={"model": "tiny", "messages": [answer, answer]})
    assert found.status_code == 400 and "cannot be rendered" in found.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_there_is_no_memory_for_is_told_and_the_server_goes_on(
    stream: bool, client: Any, opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        for name in ("logits", "states"):
            patched.setattr(type(opened[0].engine.model), name, full)
        for ask in (
            lambda: client.chat.completions.create(model="tiny", messages=HI, stream=stream),
            lambda: client.completions.create(model="tiny", prompt="The sea", stream=stream),
            lambda: client.embeddings.create(model="tiny", input="The sea"),
        ):
            with pytest.raises(openai.InternalServerError) as raised:
                ask()
            assert raised.value.status_code == 503 and raised.value.code == "out_of_memory"
            assert raised.value.type == "server_error" and "enough memory" in raised.value.message
    assert client.chat.completions.create(model="tiny", messages=HI).choices[0].message.content


def test_an_idle_connection_is_let_go_by_the_client_and_not_by_the_server(served: Serving) -> None:
    """Whoever closes it while a request is on its way breaks the request: `Connection reset by peer`."""
    import httpx
    from openai import _constants

    clients = [httpx.Limits().keepalive_expiry, _constants.DEFAULT_CONNECTION_LIMITS.keepalive_expiry]
    assert served.server.config.timeout_keep_alive > 2 * max(clients)


def test_a_stream_that_fails_in_the_middle_says_so(
    client: Any, opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: here a probability that is no number, of weights that are none."""
    ids = opened[0].prompts.tokenizer("The sea")["input_ids"]

    def submit(_: Any, asked: Request, tell: Callable[[Any], None]) -> Ticket:
        for event in (Token(ids[0], -1.0), Token(ids[1], float("nan")), Done("stop")):
            tell(event)
        return Ticket(asked, tell)

    monkeypatch.setattr(type(opened[0].engine), "submit", submit)
    stream = iter(client.chat.completions.create(model="tiny", messages=HI, stream=True, logprobs=True))
    assert next(stream).choices[0].delta.content
    with pytest.raises(openai.APIError, match="The server failed"):
        list(stream)
