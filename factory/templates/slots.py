"""Texts with slots, `<|im_start|>user\\n{{content}}<|im_end|>`: filled in Python, or written as a jinja expression."""

import re
from collections.abc import Iterator, Mapping

_SLOT = re.compile(r"\{\{(.*?)\}\}")
# the tokenizer's own; a tokenizer without one of them leaves it undefined, which `~` joins as nothing
SPECIAL = {"bos_token": "bos_token", "eos_token": "eos_token"}


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, each with whether it is a slot's name."""
    for number, piece in enumerate(_SLOT.split(text)):
        if piece:
            yield piece, number % 2 == 1


def slots(text: str) -> list[str]:
    return [piece for piece, slot in parts(text) if slot]


def fill(text: str, values: Mapping[str, str]) -> str:
    return "".join(values[piece] if slot else piece for piece, slot in parts(text))


def around(text: str) -> tuple[str, str, str]:
    """A text with one slot other than the special tokens: what stands before it, the slot, and what stands after."""
    found = [(match.start(), match.end(), match[1]) for match in _SLOT.finditer(text) if match[1] not in SPECIAL]
    assert len(found) == 1, f"one place for the content is needed: {text!r}"
    start, end, name = found[0]
    return text[:start], name, text[end:]


def expression(text: str, values: Mapping[str, str] = SPECIAL) -> str:
    """The text as a jinja expression; `values` are the expressions of its slots."""
    return " ~ ".join(values[piece] if slot else quoted(piece) for piece, slot in parts(text)) or "''"


def output(text: str, values: Mapping[str, str] = SPECIAL) -> str:
    """The jinja that prints the text. All tags take away the white space around them, whatever the environment does."""
    return f"{{{{- {expression(text, values)} -}}}}" if text else ""


def quoted(text: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return f"'{text}'"
