"""Token ids to the text that they stand for in their place."""

from collections.abc import Callable
from typing import Any

Decode = Callable[[list[int]], str]
BROKEN = "\ufffd"  # how a decoder writes bytes that are no whole character


def decoder(tokenizer: Any) -> Decode:
    """Of a transformers tokenizer, with its special tokens."""

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode


def after(decode: Decode, before: list[int], ids: list[int]) -> str:
    """What the ids add to the text of those before them: some decoders take a sequence's first space away."""
    known = decode(before) if before else ""
    whole = decode([*before, *ids])
    return whole[len(known) :] if whole.startswith(known) and not known.endswith(BROKEN) else decode(ids)
