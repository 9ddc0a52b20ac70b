"""Tokens to text as they come."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.inference.text import Writer


def written(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces that are shown of a text's tokens, and whether a stop text ended it."""
    tokenizer = tiny.tokenizer()
    writer = Writer(tokenizer, stops)
    pieces = [writer.feed(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return [*pieces, writer.finish()], writer.ended


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=30))
def test_the_pieces_are_the_text(text: str) -> None:
    pieces, _ = written(text)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=30, deadline=None)
@given(st.text("ab cé", max_size=30), st.text("ab cé", min_size=1, max_size=4))
def test_nothing_of_a_stop_text_is_shown(text: str, stop: str) -> None:
    pieces, ended = written(text, (stop,))
    assert "".join(pieces) == text.partition(stop)[0]
    assert ended == (stop in text)


def test_the_earliest_of_several_stop_texts_ends_it() -> None:
    pieces, ended = written("one, two. three", (".", ", t"))
    assert ("".join(pieces), ended) == ("one", True)


@pytest.mark.parametrize("special", [False, True])
def test_special_tokens_are_shown_where_they_are_asked_for(special: bool) -> None:
    writer = Writer(tiny.tokenizer(), special=special)
    pieces = [writer.feed(token) for token in tiny.tokenizer()("a<|im_end|>b")["input_ids"]]
    assert "".join([*pieces, writer.finish()]) == ("a<|im_end|>b" if special else "ab")


def test_bytes_that_are_no_text_are_shown_in_the_end() -> None:
    (half, *_) = tiny.tokenizer()("é", add_special_tokens=False)["input_ids"]
    writer = Writer(tiny.tokenizer())
    assert writer.feed(half) == ""
    assert writer.finish() == "\ufffd"


@pytest.mark.parametrize(("before", "text"), [((), "is"), ((2, 3), " is")])
def test_the_space_before_what_goes_on_is_part_of_it(before: tuple[int, ...], text: str) -> None:
    """And none stands before what is a turn of its own."""
    writer = Writer(tiny.sentencepiece(), before=before)
    assert writer.feed(4) + writer.finish() == text
