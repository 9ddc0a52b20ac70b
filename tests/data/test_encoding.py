"""Records to token ids: what is trained is exactly the answers, whatever the tokenizer, and nothing else is."""

import json
import pickle
import subprocess
import sys
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factory import templates
from factory.data.encoding import EncodedRow, Encoder, EncoderSpec, Encoding, Tokens, spec_of
from factory.data.record import BadRow, Kind, Message, Record
from factory.data.truncate import TooLong

MARKED = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
GLM = """{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
LLAMA2 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}\
{% endif %}{% endfor %}"""
THINKS = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' and loop.last %}\
{{ '<think>\\n' + (message['reasoning_content'] or '') + '\\n</think>\\n\\n' }}{% endif %}\
{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def packed(**changes: Any) -> Encoding:
    values: dict[str, Any] = {
        "template": "auto",
        "max_length": 4096,
        "truncation": "drop",
        "packing": False,
        "isolate_documents": False,
        "padding_free": False,
        "train_on_prompt": False,
        "mask_history": False,
        "reasoning": "template",
        "tools": "auto",
        "videos": False,
    }
    return Encoding(**(values | changes))


@cache
def bytes_of(template: str) -> Any:
    """The tiny byte-level tokenizer; `<think>` and the like are text to it."""
    made = deepcopy(tiny.tokenizer())
    named = {"marked": MARKED, "thinks": THINKS}
    made.chat_template = named.get(template) or templates.read(template)
    return made


@cache
def pieces_of(kind: str) -> Any:
    """Like Llama 2's: a space is a letter of its own, and one stands before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special[:3], initial_alphabet=list(map(chr, range(32, 127)))
    )
    backend.train_from_iterator(["What is it? It is a star, and [INST] it [/INST] goes on. It is good."] * 5, trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in special[3:]:
        vocabulary[byte] = len(vocabulary)
    backend = Tokenizer.from_str(json.dumps(state))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = LLAMA2
    return made


@cache
def slow() -> Any:
    from transformers import ByT5Tokenizer

    made = ByT5Tokenizer(extra_ids=0)
    made.chat_template = templates.read("vicuna").replace("bos_token", "''")
    return made


def encoder(tokenizer: Any, kind: Kind = "messages", **changes: Any) -> Encoder:
    return spec_of(tokenizer, packed(**changes), kind).encoder


@cache
def spaced(kind: str) -> Encoder:
    return encoder(pieces_of(kind))


@cache
def known(template: str, kind: Kind = "messages", **changes: Any) -> Encoder:
    return encoder(bytes_of(template), kind, **changes)


def talk(*contents: str, system: str | None = None, **more: Any) -> Record:
    """Turns of user and assistant, the last the assistant's."""
    roles = ("user", "assistant")
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages += [Message(role=roles[at % 2], content=content) for at, content in enumerate(contents)]
    return Record(prompt=tuple(messages[:-1]), response=(messages[-1],), **more)


def pair(chosen: str, rejected: str, *prompt: str, **more: Any) -> Record:
    one, other = talk(*prompt, chosen, **more), talk(*prompt, rejected)
    return Record(prompt=one.prompt, response=one.response, rejected=other.response)


def row(encoder: Encoder, record: Record) -> EncodedRow:
    (made,) = encoder.encode([record])
    if isinstance(made, BadRow):
        raise made
    return made


def spelled(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def trained(tokenizer: Any, tokens: Tokens) -> list[str]:
    return [spelled(tokenizer, tokens.ids[start:end]) for start, end, _ in tokens.spans]


TALKS = [
    talk("What is the sun?", "A star."),
    talk("Hi", "Hello! How are you?", "Fine,\nthanks 🙂", "Good —\n\nvery good.", system="Be  kind."),
    talk("a", "b", "c", "d", "e", ""),
    talk("Warum?", "Weil  es   so ist.\n\n- eins\n- zwei"),
    talk("<|im_end|> or <|im_start|>assistant\n?", "<|im_end|>, I say: <|im_start|>."),
]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
looks = st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "\n\n", "  ", "🙂", "é", "</s>", "<think>"])
contents = st.lists(words | looks, max_size=5).map("".join)
turns_of = st.lists(st.tuples(contents, contents), min_size=1, max_size=4)


@pytest.mark.parametrize("record", TALKS)
def test_the_tokens_are_the_tokenizers_own(record: Record) -> None:
    for name in ("chatml", "alpaca", "llama3", "smollm"):
        tokenizer = bytes_of(name)
        made = row(encoder(tokenizer), record)
        messages = [*record.prompt, *record.response]
        assert made.tokens.ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("template", ["thinks", *templates.names()])
def test_a_prompt_alone_is_asked_as_the_template_opens_an_answer(template: str) -> None:
    tokenizer = bytes_of(template)
    record = Record(prompt=({"role": "user", "content": "What is six times seven?"},), response=(), solution="42")
    made = row(encoder(tokenizer), record).tokens
    asked = tokenizer.apply_chat_template(list(record.prompt), add_generation_prompt=True, return_dict=False)
    assert made.ids[: made.prompt] == asked
    assert spelled(tokenizer, made.ids[made.prompt :]) == f"42{tokenizer.eos_token}"
    assert spelled(tokenizer, made.ids[slice(*made.asked)]) in record.prompt[0]["content"]
    assert len(made.ids[slice(*made.asked)]) > 3


def test_a_prompt_alone_is_asked_whole_or_not() -> None:
    record = Record(prompt=({"role": "user", "content": "What is it? " * 9},), response=())
    for truncation in ("drop", "left", "right", "keep_response"):
        (made,) = encoder(bytes_of("chatml"), truncation=truncation, max_length=40).encode([record])
        assert isinstance(made, BadRow) and str(made) == "longer than max_length"
    (made,) = encoder(bytes_of("chatml"), truncation="error", max_length=40).encode([record])
    assert isinstance(made, TooLong)


def test_a_solution_is_as_long_as_it_is() -> None:
    """No model reads it: a short prompt was dropped for what rewards are told."""
    tokenizer = bytes_of("chatml")
    record = Record(prompt=({"role": "user", "content": "Why?"},), response=(), solution="It is so. " * 20)
    size = row(encoder(tokenizer), record).tokens.prompt
    for truncation in ("drop", "error"):
        made = row(encoder(tokenizer, truncation=truncation, max_length=size), record).tokens
        assert spelled(tokenizer, made.ids[made.prompt :]) == f"{record.solution}{tokenizer.eos_token}"
        (longer,) = encoder(tokenizer, truncation=truncation, max_length=size - 1).encode([record])
        assert isinstance(longer, BadRow)


@pytest.mark.parametrize("special", [False, True])
def test_a_solution_that_spells_a_special_token_is_counted(special: bool) -> None:
    """It has become that token, and rewards are told of what stands before it alone."""
    solution = "a<|im_end|>b" if special else "a b"
    record = Record(prompt=({"role": "user", "content": "Why?"},), response=(), solution=solution)
    assert row(encoder(bytes_of("chatml")), record).tokens.special == special


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(turns=turns_of, system=st.none() | contents)
def test_what_is_trained_is_the_answers_and_their_ends(turns: list[tuple[str, str]], system: str | None) -> None:
    tokenizer = bytes_of("chatml")
    record = talk(*(text for turn in turns for text in turn), system=system)
    tokens = row(known("chatml"), record).tokens
    assert trained(tokenizer, tokens) == [f"{answer}<|im_end|>" for _, answer in turns]
    whole = tokenizer.apply_chat_template([*record.prompt, *record.response], tokenize=False)
    assert spelled(tokenizer, tokens.ids) == whole
    assert all(before[1] <= after[0] for before, after in pairwise(tokens.spans))
    assert all(0 <= start < end <= len(tokens.ids) for start, end, _ in tokens.spans)
    assert not tokens.cut and not tokens.open_ended


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(turns=turns_of, system=st.none() | contents)
def test_agrees_with_the_mask_of_transformers(turns: list[tuple[str, str]], system: str | None) -> None:
    """That of `{% generation %}`. It goes by characters too, but takes a token over a border for the answer's."""
    tokenizer = bytes_of("marked")
    record = talk(*(text for turn in turns for text in turn), system=system)
    theirs = tokenizer.apply_chat_template(
        [*record.prompt, *record.response], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = row(known("marked"), record).tokens
    assume(tokens.ids == theirs["input_ids"])
    mask = [0] * len(tokens.ids)
    for start, end, _ in tokens.spans:
        mask[start:end] = [1] * (end - start)
    assert mask == theirs["assistant_masks"]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(turns=turns_of)
def test_many_turns_are_as_one_after_the_other(turns: list[tuple[str, str]]) -> None:
    """ChatML's turns do not depend on each other: the tokens of the turns, one after the other."""
    made = known("chatml")
    whole = row(made, talk(*(text for turn in turns for text in turn))).tokens
    ids, spans = list[int](), list[tuple[int, int, float]]()
    for turn in turns:
        one = row(made, talk(*turn)).tokens
        spans += [(start + len(ids), end + len(ids), weight) for start, end, weight in one.spans]
        ids += one.ids
    assert (whole.ids, whole.spans) == (ids, spans)


def test_an_answers_first_characters_do_not_melt_into_its_header() -> None:
    """`assistant\\n` before `\\nA` would make a token of both newlines, which no model answering is ever given."""
    tokenizer = deepcopy(bytes_of("chatml"))
    tokenizer.add_tokens(["\n\n"])
    tokens = row(encoder(tokenizer), talk("Q", "\nA star.", "Q", "\n\nB")).tokens
    header = tokenizer("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert tokens.ids[: len(header)] == header
    assert trained(tokenizer, tokens) == ["\nA star.<|im_end|>", "\n\nB<|im_end|>"]


@pytest.mark.parametrize("kind", ["legacy", "first", "always"])
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    turns=st.lists(
        st.tuples(st.text("ab .,é🙂", max_size=9), st.text("ab .,é🙂\n", max_size=9)), min_size=1, max_size=3
    )
)
def test_tokenizers_with_a_letter_for_the_space(kind: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = pieces_of(kind)
    record = talk(*(text for turn in turns for text in turn))
    tokens = row(spaced(kind), record).tokens
    assert tokens.ids == tokenizer.apply_chat_template(
        [*record.prompt, *record.response], tokenize=True, return_dict=False
    )
    for (start, end, _), (_, answer) in zip(tokens.spans, turns, strict=True):
        assert spelled(tokenizer, tokens.ids[:start]).endswith("[/INST]")
        assert spelled(tokenizer, tokens.ids[:end]).endswith(f"[/INST] {answer} </s>")


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_pieces_have_no_space_put_before_them(kind: str) -> None:
    """Where a token would reach over an answer's border, the answer is tokenized as within the text."""
    from tokenizers import AddedToken

    tokenizer = deepcopy(pieces_of(kind))
    tokenizer.add_tokens([AddedToken(":a", normalized=False)])
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tokens = row(encoder(tokenizer), talk("it", "a star")).tokens
    pieces, start = tokenizer.convert_ids_to_tokens(tokens.ids), tokens.spans[0][0]
    assert pieces[start].startswith("a") and pieces[start - 1].endswith(":")
    assert ":a" not in pieces and ":a" in tokenizer.tokenize("assistant:a star")


def test_a_post_processor_that_trims_offsets_takes_nothing() -> None:
    """As Llama 3's: it says that a token `\\n\\n` stands nowhere."""
    from tokenizers import processors

    tokenizer = deepcopy(bytes_of("chatml"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokens = row(encoder(tokenizer), talk(" a ", "  b  ", "\n", "\n\n")).tokens
    assert trained(tokenizer, tokens) == ["  b  <|im_end|>", "\n\n<|im_end|>"]


def test_an_end_of_turn_that_takes_the_space_after_it() -> None:
    """As Phi 3's tokens do."""
    from tokenizers import AddedToken

    tokenizer = deepcopy(bytes_of("chatml"))
    tokenizer.add_special_tokens({"eos_token": AddedToken("<|end|>", rstrip=True, special=True)})
    tokenizer.chat_template = templates.read("chatml").replace("<|im_end|>", "<|end|>")
    tokens = row(encoder(tokenizer), talk("a", "b", "c", "d")).tokens
    assert trained(tokenizer, tokens) == ["b<|end|>", "d<|end|>"]


def test_a_template_that_closes_no_answer_gets_the_end_of_text() -> None:
    tokenizer = deepcopy(bytes_of("chatml"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = GLM
    tokens = row(encoder(tokenizer), talk("a", "b", "c", "d")).tokens
    assert trained(tokenizer, tokens) == ["b", "d<|im_end|>"]
    assert spelled(tokenizer, tokens.ids) == "<|user|>a<|assistant|>b<|user|>c<|assistant|>d<|im_end|>"


def test_a_tokenizer_that_is_not_fast() -> None:
    tokenizer = slow()
    assert not tokenizer.is_fast
    record = talk("Was?", "Ein Stern — 🙂.", "Und?", "Ja.", system="Kurz. ")
    tokens = row(encoder(tokenizer), record).tokens
    assert tokens.ids == tokenizer.apply_chat_template(
        [*record.prompt, *record.response], tokenize=True, return_dict=False
    )
    assert [text.strip() for text in trained(tokenizer, tokens)] == ["Ein Stern — 🙂.</s>", "Ja.</s>"]
    shorter = row(encoder(tokenizer, truncation="right", max_length=len(tokens.ids) - 3), record).tokens
    assert (shorter.ids, shorter.cut, shorter.open_ended) == (tokens.ids[:-3], 3, True)


def test_only_the_last_answer() -> None:
    tokens = row(encoder(bytes_of("chatml"), mask_history=True), TALKS[1]).tokens
    assert trained(bytes_of("chatml"), tokens) == ["Good —\n\nvery good.<|im_end|>"]


def test_the_prompt_too() -> None:
    tokens = row(encoder(bytes_of("chatml"), train_on_prompt=True), TALKS[1]).tokens
    assert tokens.spans == [(0, len(tokens.ids), 1.0)]


def test_with_the_prompt_a_message_s_own_word_stands() -> None:
    unmarked = row(encoder(bytes_of("chatml")), TALKS[2]).tokens
    (start, end, _), (first, last, _), _ = unmarked.spans
    messages: list[Message] = [message.copy() for message in (*TALKS[2].prompt, *TALKS[2].response)]
    messages[1]["weight"], messages[3]["weight"] = 0.0, 0.25
    record = Record(prompt=tuple(messages[:-1]), response=(messages[-1],))
    tokens = row(encoder(bytes_of("chatml"), train_on_prompt=True), record).tokens
    size = len(unmarked.ids)
    assert tokens.ids == unmarked.ids
    assert tokens.spans == [(0, start, 1.0), (end, first, 1.0), (first, last, 0.25), (last, size, 1.0)]


def test_weights() -> None:
    messages: list[Message] = [*TALKS[2].prompt, *TALKS[2].response]
    messages = [message.copy() for message in messages]
    messages[1]["weight"], messages[3]["weight"] = 0.0, 0.25
    record = Record(prompt=tuple(messages[:-1]), response=(messages[-1],))
    tokens = row(encoder(bytes_of("chatml")), record).tokens
    assert [weight for _, _, weight in tokens.spans] == [0.25, 1.0]
    assert trained(bytes_of("chatml"), tokens) == ["d<|im_end|>", "<|im_end|>"]
    messages[5]["weight"] = messages[3]["weight"] = 0.0
    with pytest.raises(BadRow, match="no trained token"):
        row(encoder(bytes_of("chatml")), Record(prompt=tuple(messages[:-1]), response=(messages[-1],)))


def test_texts() -> None:
    tokenizer = bytes_of("chatml")
    record = Record(prompt=(), response=({"role": "assistant", "content": "One two three four."},))
    ids = [*tokenizer("One two three four.")["input_ids"], tokenizer.eos_token_id]
    tokens = row(encoder(tokenizer, "text"), record).tokens
    assert (tokens.ids, tokens.spans) == (ids, [(0, len(ids), 1.0)])
    assert encoder(tokenizer, "text").prompt(record) == ids[:-1]
    short = len(ids) - 4
    for truncation in ("drop", "keep_response"):
        with pytest.raises(BadRow, match="longer than max_length"):
            row(encoder(tokenizer, "text", max_length=short, truncation=truncation), record)
    with pytest.raises(TooLong, match=f"{len(ids)} tokens"):
        row(encoder(tokenizer, "text", max_length=short, truncation="error"), record)
    right = row(encoder(tokenizer, "text", max_length=short, truncation="right"), record).tokens
    assert (right.ids, right.cut, right.open_ended) == (ids[:short], 4, True)
    left = row(encoder(tokenizer, "text", max_length=short, truncation="left"), record).tokens
    assert (left.ids, left.cut, left.open_ended) == (ids[4:], 4, False)
    assert row(encoder(tokenizer, "text", max_length=short, packing=True), record).tokens.ids == ids


def test_a_text_has_one_beginning_and_one_end() -> None:
    """What the tokenizer puts around a text of its own stays, and is not put there twice."""
    from tokenizers import processors

    tokenizer = deepcopy(bytes_of("chatml"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    record = Record(prompt=(), response=({"role": "assistant", "content": "One"},))
    assert spelled(tokenizer, row(encoder(tokenizer, "text"), record).tokens.ids) == "<|endoftext|>One<|im_end|>"
    # a chat template says itself where they stand
    assert spelled(tokenizer, row(encoder(tokenizer), TALKS[0]).tokens.ids).startswith("<|im_start|>user")


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(prompt=contents, history=st.none() | st.tuples(contents, contents), chosen=contents, rejected=contents)
def test_a_pairs_answers_share_their_prompt(
    prompt: str, history: tuple[str, str] | None, chosen: str, rejected: str
) -> None:
    assume(chosen != rejected)
    for name in ("chatml", "thinks"):
        tokenizer = bytes_of(name)
        record = pair(chosen, rejected, *(history or ()), prompt)
        made = row(known(name, "pairs"), record)
        assert made.rejected is not None
        ((start, end, _),) = made.tokens.spans
        ((other, last, _),) = made.rejected.spans
        assert start == other and made.tokens.ids[:start] == made.rejected.ids[:start]
        assert spelled(tokenizer, made.tokens.ids[start:end]) == f"{chosen}<|im_end|>"
        assert spelled(tokenizer, made.rejected.ids[other:last]) == f"{rejected}<|im_end|>"


def test_a_pair_where_one_answer_thinks() -> None:
    """The other's empty block is no part of the prompt: it would not be shared."""
    tokenizer = bytes_of("thinks")
    record = pair("b", "c", "a")
    thinking = Message(role="assistant", content="b", reasoning="Hm.")
    record = Record(prompt=record.prompt, response=(thinking,), rejected=record.rejected)
    made = row(encoder(tokenizer, "pairs"), record)
    assert made.rejected is not None
    assert trained(tokenizer, made.tokens) == ["<think>\nHm.\n</think>\n\nb<|im_end|>"]
    assert trained(tokenizer, made.rejected) == ["<think>\n\n</think>\n\nc<|im_end|>"]


@pytest.mark.parametrize("truncation", ["left", "keep_response"])
def test_a_pairs_prompt_loses_the_same_on_both_sides(truncation: str) -> None:
    tokenizer = bytes_of("chatml")
    record = pair("A long answer, to be kept.", "Short.", "What is " * 20, "Yes.", "And what is that? " * 9)
    long = row(encoder(tokenizer, "pairs"), record)
    limit = len(long.tokens.ids) - 20
    made = row(encoder(tokenizer, "pairs", truncation=truncation, max_length=limit), record)
    assert long.rejected is not None and made.rejected is not None
    assert trained(tokenizer, made.tokens) == ["A long answer, to be kept.<|im_end|>"]
    assert trained(tokenizer, made.rejected) == ["Short.<|im_end|>"]
    start = made.tokens.spans[0][0]
    assert made.tokens.ids[:start] == made.rejected.ids[:start]
    assert made.tokens.cut == made.rejected.cut >= 20
    assert len(made.tokens.ids) <= limit


@cache
def left(template: str, pieces: bool, limit: int) -> tuple[Any, Encoder]:
    tokenizer = deepcopy(pieces_of("legacy") if pieces else bytes_of("chatml"))
    tokenizer.chat_template = templates.read(template)
    return tokenizer, encoder(tokenizer, "pairs", truncation="left", max_length=limit)


@pytest.mark.parametrize("template", ["chatml", "deepseek", "falcon", "llama2", "mistral", "vicuna", "xverse"])
@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(
    pieces=st.booleans(),
    limit=st.sampled_from([60, 150]),
    turns=st.lists(st.sampled_from(["it", "a", "What", "é🙂"]), min_size=3, max_size=5),
    longer=st.integers(1, 90),
)
def test_a_pair_of_unequal_sides_is_cut_at_the_left(
    template: str, pieces: bool, limit: int, turns: list[str], longer: int
) -> None:
    """Of a pair one side alone may be too long: what is tokenized in pieces is so on both."""
    tokenizer, made_by = left(template, pieces, limit)
    prompt = [f"{text} " * 4 + "?" for text in (turns if len(turns) % 2 else turns[1:])]
    (made,) = made_by.encode([pair("a star " * longer, "No.", *prompt)])
    if isinstance(made, BadRow):
        assert str(made) == "no room for the answer"
        return
    assert made.rejected is not None
    start = made.tokens.spans[0][0]
    assert start == made.rejected.spans[0][0] and made.tokens.ids[:start] == made.rejected.ids[:start]
    assert made.tokens.cut == made.rejected.cut and max(len(made.tokens.ids), len(made.rejected.ids)) <= limit
    assert spelled(tokenizer, made.rejected.ids[start:]).strip().startswith("No.")


def test_a_pair_cut_at_the_right_keeps_its_prompt() -> None:
    tokenizer = bytes_of("chatml")
    record = pair("A long answer, to be cut.", "Short.", "a")
    whole = row(encoder(tokenizer, "pairs"), record)
    assert whole.rejected is not None
    made = row(encoder(tokenizer, "pairs", truncation="right", max_length=len(whole.tokens.ids) - 4), record)
    assert made.rejected == whole.rejected
    assert made.tokens.ids == whole.tokens.ids[:-4] and made.tokens.open_ended
    history = pair("b", "c", "d", "e", "long " * 30)
    with pytest.raises(BadRow, match="no room for the answer"):
        row(encoder(tokenizer, "pairs", truncation="right", max_length=60), history)


def test_a_pair_whose_answers_become_the_same_is_none() -> None:
    """As the chat template writes them, without what they thought, or cut to the same length."""
    alike = pair("Yes.", " Yes.\n", "a")
    with pytest.raises(BadRow, match=r"^chosen equals rejected$"):
        row(encoder(bytes_of("llama3"), "pairs"), alike)
    assert row(encoder(bytes_of("chatml"), "pairs"), alike).rejected is not None
    thoughts = [Message(role="assistant", content="b", reasoning=thought) for thought in ("Hm.", "Ah.")]
    record = Record(prompt=talk("a", "b").prompt, response=(thoughts[0],), rejected=(thoughts[1],))
    with pytest.raises(BadRow, match=r"^chosen equals rejected$"):
        row(encoder(bytes_of("thinks"), "pairs", reasoning="strip"), record)
    assert row(encoder(bytes_of("thinks"), "pairs"), record).rejected is not None
    late = pair("It is a star, and no planet.", "It is a star, and so bright.", "a")
    whole = row(encoder(bytes_of("chatml"), "pairs"), late)
    for limit, why in (
        (len(whole.tokens.ids) - 2, None),
        (whole.tokens.prompt + 2, "chosen equals rejected up to max_length"),
    ):
        (made,) = encoder(bytes_of("chatml"), "pairs", truncation="right", max_length=limit).encode([late])
        assert (str(made) if isinstance(made, BadRow) else None) == why


def test_labelled() -> None:
    tokenizer = bytes_of("chatml")
    record = talk("a", "b", "c", "d", label=False)
    made = row(encoder(tokenizer, "labelled"), record)
    assert made.label is False and made.rejected is None
    assert trained(tokenizer, made.tokens) == ["d<|im_end|>"]


def test_a_prompt_is_what_the_model_is_given() -> None:
    tokenizer = bytes_of("chatml")
    record = TALKS[1]
    wanted = tokenizer.apply_chat_template(
        list(record.prompt), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encoder(tokenizer).prompt(record) == wanted
    tokens = row(encoder(tokenizer), record).tokens
    assert tokens.ids[: tokens.spans[-1][0]] == wanted


def test_bad_rows_keep_their_places() -> None:
    tokenizer = deepcopy(bytes_of("chatml"))
    refusing = "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = refusing + templates.read("chatml")
    records = [talk("bad", "b"), TALKS[0], TALKS[1], talk("bad", "d")]
    made = encoder(tokenizer, max_length=40).encode(records)
    assert [str(each) if isinstance(each, BadRow) else None for each in made] == [
        "the chat template refuses it: no",
        None,
        "longer than max_length",
        "the chat template refuses it: no",
    ]
    assert made[1] == row(encoder(tokenizer), TALKS[0])


LONG = [
    talk("What is the sun? " * 6, "A star. " * 4, "And the moon? " * 6, "A stone. " * 4, system="Be kind, and short."),
    talk("🙂" * 40, "🙂🙃" * 10),
    talk("é" * 60 + "\n\n", "\n\nJa.", "\n\nUnd?", "Nein."),
]


@pytest.mark.parametrize("truncation", ["right", "left", "keep_response"])
@pytest.mark.parametrize("record", LONG)
def test_truncation_of_conversations(truncation: str, record: Record) -> None:
    tokenizer = bytes_of("chatml")
    whole = row(encoder(tokenizer), record).tokens
    messages = [*record.prompt, *record.response]
    answers = [f"{message['content']}<|im_end|>" for message in messages if message["role"] == "assistant"]
    questions = [message["content"].strip() for message in messages if message["role"] == "user"]
    kept = 0
    for limit in range(8, len(whole.ids), 3):
        (made,) = encoder(tokenizer, truncation=truncation, max_length=limit).encode([record])
        if isinstance(made, BadRow):
            assert str(made) == "no room for the answer" and not kept
            continue
        kept, tokens = kept + 1, made.tokens
        text, said = spelled(tokenizer, tokens.ids), trained(tokenizer, tokens)
        assert len(tokens.ids) <= limit and len(tokens.ids) + tokens.cut == len(whole.ids)
        assert "\ufffd" not in text, "half a character"
        assert not tokens.open_ended or truncation == "right"
        assert tokens.prompt == tokens.spans[-1][0], "what is asked is the last answer that is left"
        asked = spelled(tokenizer, tokens.ids[slice(*tokens.asked)]).strip()
        assert questions[len(said) - 1 if truncation == "right" else -1].endswith(asked)
        assert asked or truncation != "right"
        if truncation == "right":
            assert tokens.ids == whole.ids[: len(tokens.ids)] and tokens.spans[-1][1] == len(tokens.ids)
            assert tokens.open_ended == (not said[-1].endswith("<|im_end|>"))
            assert all(answer.startswith(start) for answer, start in zip(answers, said, strict=False))
        else:
            assert said == answers[-len(said) :]
            assert truncation == "left" or len(said) == len(answers)
            # a conversation in the template's own form is left
            assert text.startswith("<|im_start|>" + messages[0]["role"])
            assert text.count("<|im_start|>assistant\n") == len(said) == text.count("<|im_start|>user\n")
            assert truncation == "keep_response" or record is not LONG[0] or "Be kind, and short." in text
    assert kept


@pytest.mark.parametrize("truncation", ["right", "left", "keep_response"])
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(turns=turns_of, limit=st.sampled_from(range(10, 120, 11)))
def test_no_cut_breaks_a_conversation(truncation: str, turns: list[tuple[str, str]], limit: int) -> None:
    tokenizer = bytes_of("chatml")
    record = talk(*(text for turn in turns for text in turn))
    (made,) = known("chatml", truncation=truncation, max_length=limit).encode([record])
    if isinstance(made, BadRow):
        assert str(made) == "no room for the answer"
        return
    whole = row(known("chatml"), record).tokens
    tokens = made.tokens
    assert len(tokens.ids) <= limit
    assert tokens.spans and tokens.cut == len(whole.ids) - len(tokens.ids)
    said = trained(tokenizer, tokens)
    wanted = [f"{answer}<|im_end|>" for _, answer in turns]
    if truncation == "right":
        ended = said if not tokens.open_ended else said[:-1]
        assert ended == wanted[: len(ended)] and wanted[len(said) - 1].startswith(said[-1])
    else:
        assert said == wanted[-len(said) :]


def test_images_need_a_model_that_sees() -> None:
    record = talk("<image>\nWhat is it?", "A star.", images=("a.png",))
    with pytest.raises(BadRow, match="no processor"):
        row(encoder(bytes_of("chatml")), record)


def test_a_conversation_that_the_template_lost_is_told() -> None:
    tokenizer = deepcopy(bytes_of("chatml"))
    shortened = "{% for message in messages %}{{ message['content'][:3] + eos_token }}{% endfor %}"
    tokenizer.chat_template = shortened
    with pytest.raises(BadRow, match="the chat template leaves out a message"):
        row(encoder(tokenizer), talk("a", "b"))


def test_a_spec_goes_to_another_process_and_needs_no_transformers() -> None:
    spec = spec_of(bytes_of("chatml"), packed(), "messages")
    sent = pickle.loads(pickle.dumps(spec))
    assert sent == spec
    assert isinstance(sent, EncoderSpec)
    assert sent.encoder.encode(TALKS) == encoder(bytes_of("chatml")).encode(TALKS)
    script = (
        "import pickle, sys; spec = pickle.load(sys.stdin.buffer); spec.encoder;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(spec), capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_tools_have_their_own_template_where_a_tokenizer_has_one() -> None:
    tokenizer = deepcopy(bytes_of("chatml"))
    chatml = templates.read("chatml")
    tokenizer.chat_template = {"default": chatml, "tool_use": "{{ tools | tojson }}" + chatml}
    record = talk("a", "b", tools=({"name": "clock", "description": "d", "parameters": {}},))
    assert "clock" in spelled(tokenizer, row(encoder(tokenizer), record).tokens.ids)
    assert spelled(tokenizer, row(encoder(tokenizer), talk("a", "b")).tokens.ids).startswith("<|im_start|>user")
