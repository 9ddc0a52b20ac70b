"""Tokens' texts in their place: the spaces that a decoder takes from the beginning of a text are theirs."""

import tiny

from factory.data.decoding import after, decoder


def test_a_text_goes_on_with_its_space() -> None:
    tokenizer = tiny.sentencepiece()
    decode, (the, sea, end) = decoder(tokenizer), tokenizer.convert_tokens_to_ids(["▁The", "▁sea", "</s>"])
    assert decode([the]) == after(decode, [], [the]) == "The"
    assert after(decode, [the], [sea, end]) == " sea</s>"
    assert after(decode, [end], [the]) == " The"


def test_tokens_after_half_a_character_are_decoded_alone() -> None:
    tokenizer = tiny.tokenizer()
    decode, ids = decoder(tokenizer), tokenizer("红a")["input_ids"]
    assert decode(ids[:1]) == "\ufffd"
    assert after(decode, ids[:1], ids[1:]) == decode(ids[1:])
    assert after(decode, ids[:-1], ids[-1:]) == "a"
