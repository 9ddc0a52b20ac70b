"""Records to tokens and labels: what is trained is the answers, and nothing is lost on the way."""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import templates
from factory.data.encode import IGNORED, Encoded, chat, text
from factory.data.formats import Message, Record
from factory.plan import Pack
from factory.refusal import UserError

END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "alpaca": "<|im_end|>"}
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def planned(**changes: Any) -> Pack:
    values: dict[str, Any] = {
        "template": "auto",
        "max_length": 4096,
        "truncation": "drop",
        "packing": False,
        "isolate_documents": False,
        "train_on_prompt": False,
        "mask_history": False,
    }
    return Pack(**(values | changes))


@cache
def tokenizer_for(template: str) -> Any:
    from copy import deepcopy

    made = deepcopy(tiny.tokenizer())
    if template == "llama3":
        made.add_special_tokens({"bos_token": LLAMA3[0], "additional_special_tokens": LLAMA3[1:]})
    made.chat_template = templates.read(template)
    return made


def conversation(*contents: str, system: str | None = None) -> Record:
    """Turns of user and assistant, the last the assistant's."""
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return Record(prompt=tuple(messages[:-1]), response=(messages[-1],))


CONVERSATIONS = [
    conversation("What is the sun?", "A star."),
    conversation("Hi", "Hello! How are you?", "Fine,\nthanks 🙂", "Good —\n\nvery good.", system="Be  kind."),
    conversation("a", "b", "c", "d", "e", ""),
    conversation("Warum?", "Weil  es   so ist.\n\n- eins\n- zwei"),
]


def answers(record: Record) -> list[str]:
    return [message["content"] for message in (*record.prompt, *record.response) if message["role"] == "assistant"]


def trained(labels: list[int], tokenizer: Any) -> str:
    return tokenizer.decode([label for label in labels if label != IGNORED], clean_up_tokenization_spaces=False)


def reference(record: Record, tokenizer: Any, end: str) -> tuple[list[int], list[int]]:
    """Segment by segment: the text grows turn by turn, and what an answer's turn adds, up to its end, is trained."""
    messages, ids, labels = [*record.prompt, *record.response], list[int](), list[int]()

    def rendered(count: int, **options: bool) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, **options) if count else ""

    def add(segment: str, train: bool) -> None:
        tokens = tokenizer(segment, add_special_tokens=False)["input_ids"]
        ids.extend(tokens)
        labels.extend(tokens if train else [IGNORED] * len(tokens))

    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = rendered(number, add_generation_prompt=True), rendered(number + 1)
        answer = message["content"] + end
        assert after.startswith(before + answer)
        add(before.removeprefix(done), False)
        add(answer, True)
        done = before + answer
    add(rendered(len(messages)).removeprefix(done), False)
    return ids, labels


@pytest.mark.parametrize("template", sorted(END))
def test_trains_the_answers_and_nothing_else(template: str) -> None:
    tokenizer = tokenizer_for(template)
    encoded = chat(CONVERSATIONS, tokenizer, planned())
    assert (encoded.rows, encoded.dropped) == (len(CONVERSATIONS), {})
    for record, example, told in zip(CONVERSATIONS, encoded.examples, encoded.answers, strict=True):
        messages = [*record.prompt, *record.response]
        assert example.ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert (example.ids, example.labels) == reference(record, tokenizer, END[template])
        spelled = "".join(answer + END[template] for answer in answers(record))
        assert trained(example.labels, tokenizer) == told == spelled


@pytest.mark.parametrize("template", sorted(END))
def test_mask_history_trains_the_last_answer(template: str) -> None:
    tokenizer = tokenizer_for(template)
    encoded = chat(CONVERSATIONS, tokenizer, planned(mask_history=True))
    for record, example in zip(CONVERSATIONS, encoded.examples, strict=True):
        assert trained(example.labels, tokenizer) == record.response[0]["content"] + END[template]


def test_train_on_prompt_trains_every_token() -> None:
    encoded = chat(CONVERSATIONS, tokenizer_for("chatml"), planned(train_on_prompt=True))
    assert all(example.labels == example.ids for example in encoded.examples)
    assert [example.trained for example in encoded.examples] == [len(example.ids) - 1 for example in encoded.examples]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
contents = st.lists(words, max_size=4).map(" ".join).map(str.strip)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), system=st.none() | contents)
def test_any_conversation_comes_back(turns: list[tuple[str, str]], system: str | None) -> None:
    tokenizer = tokenizer_for("chatml")
    record = conversation(*(text for turn in turns for text in turn), system=system)
    (example,) = chat([record], tokenizer, planned()).examples
    assert len(example.ids) == len(example.labels)
    assert all(label in (IGNORED, token) for token, label in zip(example.ids, example.labels, strict=True))
    whole = tokenizer.apply_chat_template([*record.prompt, *record.response], tokenize=False)
    assert tokenizer.decode(example.ids, clean_up_tokenization_spaces=False) == whole
    spelled = [answer + "<|im_end|>" for _, answer in turns]
    assert trained(example.labels, tokenizer) == "".join(spelled)
    assert example.trained == sum(len(tokenizer(text)["input_ids"]) for text in spelled)


def test_a_template_that_rewrites_history_is_told() -> None:
    from copy import deepcopy

    tokenizer = deepcopy(tokenizer_for("chatml"))
    shortened = "(message['content'] if loop.last else message['content'][:1])"
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", shortened)
    encoded = chat([CONVERSATIONS[0], CONVERSATIONS[1]], tokenizer, planned())
    assert len(encoded.examples) + sum(encoded.dropped.values()) == 2
    assert list(encoded.dropped) == ["the chat template renders a turn differently in its context"]


def test_what_is_too_long_is_counted_or_refused() -> None:
    tokenizer = tokenizer_for("chatml")
    lengths = [len(example.ids) for example in chat(CONVERSATIONS, tokenizer, planned()).examples]
    longest = max(lengths)
    encoded = chat(CONVERSATIONS, tokenizer, planned(max_length=longest - 1))
    assert encoded.dropped == {"longer than max_length": 1}
    assert [len(example.ids) for example in encoded.examples] == [size for size in lengths if size < longest]
    assert chat(CONVERSATIONS, tokenizer, planned(max_length=longest, truncation="error")).dropped == {}
    with pytest.raises(UserError, match=rf"row-too-long.*{longest} tokens"):
        chat(CONVERSATIONS, tokenizer, planned(max_length=longest - 1, truncation="error"))


def documents(*texts: str) -> list[Record]:
    return [Record(prompt=(), response=({"role": "assistant", "content": text},)) for text in texts]


TEXTS = ["One two three.", "Four.", "A much longer document, which goes on and on, over every limit. " * 5, "x", "y z"]


def stream() -> list[int]:
    tokenizer = tokenizer_for("chatml")
    return [token for text in TEXTS for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]


def alone(example: Any) -> list[int]:
    """All tokens but each document's first, which nothing of its own predicts."""
    starts = {sum(example.documents[:number]) for number in range(len(example.documents))}
    return [IGNORED if at in starts else token for at, token in enumerate(example.ids)]


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("length", [8, 16, 50, 4096])
def test_packed_text_is_the_stream_of_documents(length: int, isolate: bool) -> None:
    tokenizer, whole = tokenizer_for("chatml"), stream()
    assert len(whole) % length > 1
    pack = planned(packing=True, max_length=length, isolate_documents=isolate)
    encoded = text(documents(*TEXTS), tokenizer, pack)
    assert [token for example in encoded.examples for token in example.ids] == whole
    assert {len(example.ids) for example in encoded.examples[:-1]} <= {length}
    assert len(encoded.examples[-1].ids) == len(whole) % length
    assert (encoded.rows, encoded.dropped) == (len(TEXTS), {})
    if not isolate:
        assert all(example.labels == example.ids for example in encoded.examples)
        assert not any(example.documents for example in encoded.examples)
        return
    ends = {at for at, token in enumerate(whole, start=1) if token == tokenizer.eos_token_id}
    cuts, at = set(), 0
    for example in encoded.examples:
        assert sum(example.documents) == len(example.ids)
        for size in example.documents:
            cuts.add(at := at + size)
        assert example.labels == alone(example)
    assert cuts == ends | {*range(length, len(whole), length)}


def test_unpacked_text_is_a_document_each() -> None:
    tokenizer = tokenizer_for("chatml")
    encoded = text(documents(*TEXTS), tokenizer, planned(max_length=100))
    kept = [text for text in TEXTS if len(text) < 100]
    assert [example.ids for example in encoded.examples] == [
        [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in kept
    ]
    assert (encoded.rows, encoded.dropped) == (4, {"longer than max_length": 1})
    with pytest.raises(UserError, match="row-too-long"):
        text(documents(*TEXTS), tokenizer, planned(max_length=100, truncation="error"))


def _naive(lengths: list[int], limit: int) -> int:
    """How many sequences it takes to fill them in the rows' own order."""
    count, room = 0, 0
    for length in lengths:
        if length > room:
            count, room = count + 1, limit
        room -= length
    return count


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40), isolate=st.booleans())
def test_best_fit_places_every_example_once(sizes: list[int], isolate: bool) -> None:
    tokenizer = tokenizer_for("chatml")
    records = [conversation(f"{number}", "🙂" * (size // 4) + f"{number}") for number, size in enumerate(sizes)]
    alone: Encoded = chat(records, tokenizer, planned(max_length=80))
    packed = chat(records, tokenizer, planned(max_length=80, packing=True, isolate_documents=isolate))
    assert (packed.rows, packed.dropped) == (alone.rows, alone.dropped)
    assert all(len(example.ids) <= 80 for example in packed.examples)
    assert len(packed.examples) <= _naive([len(example.ids) for example in alone.examples], 80)
    opening = tokenizer("<|im_start|>user")["input_ids"]
    members: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for example in packed.examples:
        starts = [at for at in range(len(example.ids)) if example.ids[at : at + len(opening)] == opening]
        bounds = [*starts, len(example.ids)]
        assert example.documents == (tuple(b - a for a, b in pairwise(bounds)) if isolate else ())
        members += [(tuple(example.ids[a:b]), tuple(example.labels[a:b])) for a, b in pairwise(bounds)]
    assert sorted(members) == sorted((tuple(example.ids), tuple(example.labels)) for example in alone.examples)


def test_a_documents_first_token_has_no_label() -> None:
    tokenizer = tokenizer_for("chatml")
    pack = planned(max_length=200, packing=True, isolate_documents=True, train_on_prompt=True)
    for example in chat(CONVERSATIONS, tokenizer, pack).examples:
        assert example.labels == alone(example)


def test_an_answers_first_characters_do_not_melt_into_its_header() -> None:
    """`assistant\\n` before `\\nA` would make a token of both newlines, which no model answering is ever asked for."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.add_tokens(["\n\n"])
    try:
        record = conversation("Q", "\nA star.", "Q", "\n\nB")
        (example,) = chat([record], tokenizer, planned()).examples
        header = tokenizer("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        assert example.ids[: len(header)] == header
        assert trained(example.labels, tokenizer) == "\nA star.<|im_end|>\n\nB<|im_end|>"
    finally:
        tokenizer_for.cache_clear()
