"""Texts to token ids, and where in the tokens a character is: of fast tokenizers, and of those that are not."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import ByteLevel

Span = tuple[int, int]


class Placed(Protocol):
    """A text's tokens."""

    ids: list[int]

    def edge(self, at: int) -> tuple[int, bool]:
        """The first token that begins at character `at` or after it, and whether none before it reaches beyond `at`."""
        ...

    def whole(self, token: int) -> bool:
        """Whether a cut before the token parts no character: many have several tokens."""
        ...


class Texts(Protocol):
    """A tokenizer. `marks` are the ids of its added tokens, which may take the space around them with them."""

    marks: frozenset[int]

    def encode(self, texts: Sequence[str]) -> Sequence[Placed]:
        """Just as they stand."""
        ...

    def pieces(self, text: str, cuts: Sequence[int]) -> Placed:
        """The text with no token over a cut; `cuts` are characters, in order."""
        ...

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """With what the tokenizer puts around a text of its own, as a beginning-of-text token."""
        ...


class _Encoded:
    """An encoding that is asked for single places: a list of all offsets would take longer than the tokens."""

    __slots__ = ("_encoding", "_size", "ids")

    def __init__(self, encoding: Encoding, size: int):
        self._encoding, self._size, self.ids = encoding, size, encoding.ids

    def edge(self, at: int) -> tuple[int, bool]:
        for place in range(at, self._size):
            token = self._encoding.char_to_token(place)
            if token is not None:  # a normalizer may leave a character out
                clean = self._chars(token)[0] >= at
                return (token if clean else token + 1), clean
        return len(self.ids), True

    def whole(self, token: int) -> bool:
        if not 0 < token < len(self.ids):
            return True
        return self._chars(token)[0] >= self._chars(token - 1)[1]

    def _chars(self, token: int) -> Span:
        found = self._encoding.token_to_chars(token)
        assert found is not None, "a token of no text"
        return found


class _Spelling(dict[int, bytes]):
    """What the tokens of a byte-level vocabulary (GPT-2's, Radford et al. 2019, section 2.2) spell, looked up once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        super().__init__(
            (token, added.content.encode()) for token, added in tokenizer.get_added_tokens_decoder().items()
        )

    def __missing__(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) or ""
        self[token] = bytes(_BYTES[character] for character in text if character in _BYTES)
        return self[token]


def _byte_characters() -> dict[str, int]:
    """Each byte is a character of its own: the printable ones themselves, the others from 256 on, in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_characters()


class _Spelled:
    """Tokens that together spell the text, byte for byte: where each begins follows from their lengths.

    A tokenizer that is not asked for offsets takes a quarter less time.
    """

    __slots__ = ("_bytes", "_ends", "_text", "ids")

    def __init__(self, ids: list[int], parts: list[bytes], text: str, data: bytes):
        self.ids, self._text, self._bytes = ids, text, data
        self._ends = list(accumulate(map(len, parts)))

    def edge(self, at: int) -> tuple[int, bool]:
        byte = at if len(self._bytes) == len(self._text) else len(self._text[:at].encode())
        if byte == 0:
            return 0, True
        before = bisect_left(self._ends, byte)
        return before + 1, self._ends[before] == byte

    def whole(self, token: int) -> bool:
        if not 0 < token < len(self.ids):
            return True
        return self._bytes[self._ends[token - 1]] & 0xC0 != 0x80  # of UTF-8, a byte that continues a character


class _Listed:
    """Tokens with all their offsets."""

    def __init__(self, ids: list[int], offsets: list[Span]):
        self.ids = ids
        self._starts, self._ends = [start for start, _ in offsets], [end for _, end in offsets]

    def edge(self, at: int) -> tuple[int, bool]:
        token = bisect_left(self._starts, at)
        return token, token == 0 or self._ends[token - 1] <= at

    def whole(self, token: int) -> bool:
        return not 0 < token < len(self.ids) or self._starts[token] >= self._ends[token - 1]


def _spelled(ids: list[int], text: str, spelling: _Spelling) -> _Spelled | None:
    parts, data = [spelling[token] for token in ids], text.encode(errors="surrogatepass")
    return _Spelled(ids, parts, text, data) if b"".join(parts) == data else None


class Fast:
    """Takes the tokenizer for its own: `placed` says whether its texts are encoded in places, or as documents."""

    def __init__(self, tokenizer: Tokenizer, *, placed: bool):
        self._tokenizer = tokenizer
        if placed:  # some leave space out of offsets, and all take time
            tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
        self.marks = frozenset(tokenizer.get_added_tokens_decoder())
        self._guard = tokenizer.encode("\n", add_special_tokens=False).ids
        self._spelling = _Spelling(tokenizer) if isinstance(tokenizer.decoder, ByteLevel) else None

    def encode(self, texts: Sequence[str]) -> Sequence[Placed]:
        if self._spelling is None:
            return self._with_offsets(texts)
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        spelled = [
            _spelled(encoding.ids, text, self._spelling) for encoding, text in zip(encodings, texts, strict=True)
        ]
        # a normalizer changes a text, an added token takes the space around it
        others = iter(self._with_offsets([text for text, found in zip(texts, spelled, strict=True) if found is None]))
        return [found or next(others) for found in spelled]

    def _with_offsets(self, texts: Sequence[str]) -> Sequence[Placed]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [_Encoded(encoding, len(text)) for encoding, text in zip(encodings, texts, strict=True)]

    def pieces(self, text: str, cuts: Sequence[int]) -> Placed:
        ids, offsets = list[int](), list[Span]()
        for start, end in pairwise([0, *cuts, len(text)]):
            found, places = self._piece(text[start:end], first=start == 0)
            ids += found
            offsets += [(first + start, last + start) for first, last in places]
        return _Listed(ids, offsets)

    def _piece(self, text: str, *, first: bool) -> tuple[list[int], list[Span]]:
        """As it is tokenized within a text: many tokenizers put a space before a text's beginning."""
        if not first:
            guarded = self._tokenizer.encode(f"\n{text}", add_special_tokens=False)
            size = len(self._guard)
            if guarded.ids[:size] == self._guard and all(start > 0 for start, _ in guarded.offsets[size:]):
                return guarded.ids[size:], [(start - 1, end - 1) for start, end in guarded.offsets[size:]]
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


class _Prefixes:
    """A tokenizer that tells no places: a text's beginning is tokenized by itself."""

    def __init__(self, tokenizer: Any, text: str):
        self._tokenizer, self._text = tokenizer, text
        self.ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]

    def edge(self, at: int) -> tuple[int, bool]:
        before = self._tokenizer(self._text[:at], add_special_tokens=False)["input_ids"] if at else []
        return len(before), self.ids[: len(before)] == before

    def whole(self, token: int) -> bool:
        return True


class Slow:
    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.marks = frozenset(tokenizer.added_tokens_decoder)

    def encode(self, texts: Sequence[str]) -> Sequence[Placed]:
        return [_Prefixes(self._tokenizer, text) for text in texts]

    def pieces(self, text: str, cuts: Sequence[int]) -> Placed:
        ids, offsets = list[int](), list[Span]()
        for start, end in pairwise([0, *cuts, len(text)]):
            found = self._tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
            ids += found
            # what is known of their places: the piece's first token begins it, the others are within
            offsets += [(start if number == 0 else start + 1, end) for number in range(len(found))]
        return _Listed(ids, offsets)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts))["input_ids"] if texts else []
