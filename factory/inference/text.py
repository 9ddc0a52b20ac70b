"""Tokens to text as they come: no half character is shown, and nothing of a text that ends the answer."""

from collections.abc import Iterable, Sequence
from typing import Any

_HALF = "�"  # what a decoder writes for bytes that are no whole character yet
_WORST = 12  # tokens after which such bytes are taken for what they are
_BEFORE = 4  # tokens that a character may have, as bytes


class Writer:
    """Of one answer. `ended` once a stop text came: what follows is not shown.

    `before` are the tokens of a text that the answer goes on with: what begins a text loses its space in SentencePiece.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, special: bool = False, before: Sequence[int] = ()):
        self._tokenizer, self._stops, self._special = tokenizer, tuple(stop for stop in stops if stop), special
        self._ids = list(before[-_BEFORE:])
        # tokens whose text is known; where decoding begins, for the space before a word
        self._shown, self._begin = len(self._ids), 0
        self._held = ""  # may be the beginning of a stop text
        self.ended = False

    def feed(self, token: int) -> str:
        """What is new to be shown."""
        if self.ended:
            return ""
        self._ids.append(token)
        return self._give(self._decoded(last=False), last=False)

    def finish(self) -> str:
        """The rest, once the last token came."""
        if self.ended:
            return ""
        return self._give(self._decoded(last=True), last=True)

    def _decoded(self, *, last: bool) -> str:
        before = self._text(self._ids[self._begin : self._shown])
        now = self._text(self._ids[self._begin :])
        waiting = len(self._ids) - self._shown
        if not last and waiting < _WORST and now.endswith(_HALF):
            return ""
        self._begin, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False)

    def _give(self, new: str, *, last: bool) -> str:
        text, self._held = self._held + new, ""
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.ended = True
            return text[: min(found)]
        if last:
            return text
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def written(tokenizer: Any, tokens: Iterable[int], stops: Sequence[str], *, special: bool = False) -> str:
    """The text of an answer that is whole."""
    writer = Writer(tokenizer, stops, special=special)
    return "".join([*map(writer.feed, tokens), writer.finish()])


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters may be the stop's first."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
