"""A tokenizer as GGUF holds it: tokens, their types, merges or scores, and the name of how text is split before."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.config.refusal import UserError, refuse

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # gguf.TokenType

# llama.cpp knows ways to split text by a name each (llama_vocab_pre_type). By the patterns of tokenizer.json, in order
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: dict[tuple[str, ...], str] = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (rf"{_LETTERS}\p{{N}}{_REST}",): "qwen2",
    (rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}",): "llama-bpe",
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """`merges` are those of byte-level BPE (`model` gpt2), `scores` those of SentencePiece (`model` llama)."""

    model: str
    pre: str
    texts: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: dict[str, int]  # bos, eos, eot (of a turn), unk, pad: ids
    adds_bos: bool
    space_prefix: bool


def tokens(tokenizer: Any, rows: int, ends: Sequence[int]) -> Tokens:
    """The tokenizer for an embedding of so many rows; `ends`: what ends an answer.

    Raises UserError where GGUF has no way to say it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it has no tokenizer.json")
    said = json.loads(backend.to_str())
    model = said["model"]
    if model["type"] != "BPE":
        raise _unknown(f"it is of the kind {model['type']}, which is not written here")
    pieces = bool(model.get("byte_fallback"))
    texts, types = _listed(said, tokenizer, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids["eot"] = next((number for number in ends if number != ids["eos"]), None)  # llama.cpp knows some by their texts
    return Tokens(
        model="llama" if pieces else "gpt2",
        pre="default" if pieces else _split(said),
        texts=texts,
        types=types,
        merges=() if pieces else tuple(merges),
        scores=_scores(texts, model["merges"]) if pieces else (),
        special={name: number for name, number in ids.items() if number is not None},
        adds_bos=starts_text(tokenizer),
        space_prefix=pieces and _prepends(said),
    )


def _unknown(wrong: str) -> UserError:
    fix = "set export.format=hf; llama.cpp's own convert_hf_to_gguf.py reads that, and knows more tokenizers"
    return refuse(
        "export-unfit",
        "export.format=gguf",
        f"the tokenizer cannot be written: {wrong}",
        because="what is written would not answer as the model does",
        fix=fix,
    )


def _listed(said: dict[str, Any], tokenizer: Any, rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Each row's text and type. Rows that no token has are there to pad the embedding."""
    texts = [f"[PAD{number}]" for number in range(rows)]
    types = [_UNUSED] * rows
    for text, number in said["model"]["vocab"].items():
        is_byte = bool(said["model"].get("byte_fallback")) and len(text) == 6 and text.startswith("<0x")
        texts[number], types[number] = text, _BYTE if is_byte else _NORMAL
    for token in said["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    unknown = tokenizer.unk_token_id
    if unknown is not None and said["model"].get("byte_fallback"):
        types[unknown] = _UNKNOWN
    return tuple(texts), tuple(types)


def _scores(texts: tuple[str, ...], merges: list[Any]) -> tuple[float, ...]:
    """SentencePiece joins the pair of the best score first, as BPE the pair of the earliest merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    return tuple(float(-ranks[text]) if text in ranks else -1e6 if len(text) > 1 else -1e5 for text in texts)


def _split(said: dict[str, Any]) -> str:
    found = said.get("pre_tokenizer")
    if found is None:
        raise _unknown("it does not say how text is split")
    parts = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    words = tuple(word for part in parts if (word := _word(part)) is not None)
    if words not in _SPLITS:
        raise _unknown(f"llama.cpp's name for how it splits text is not known ({' '.join(words)[:80]})")
    return _SPLITS[words]


def _word(part: dict[str, Any]) -> str | None:
    """A part of the pre-tokenizer as `_SPLITS` names it; None: bytes as characters, which all of them have."""
    match part["type"]:
        case "ByteLevel" if part.get("add_prefix_space"):
            return "bytes after a space"
        case "ByteLevel":
            return "bytes" if part.get("use_regex", True) else None
        case "Digits":
            return "digits" if part.get("individual_digits") else "runs of digits"
        case "Split":
            return part["pattern"].get("Regex", str(part["pattern"]))
        case other:
            return other


def starts_text(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its bos before a text: ChatML's models name the start of a turn so, and do not."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _prepends(said: dict[str, Any]) -> bool:
    """Whether a space is put before the text, by the normalizer or by the pre-tokenizer."""
    before = json.dumps(said.get("pre_tokenizer"))
    schemes = ('"prepend_scheme": "first"', '"prepend_scheme": "always"')
    return "Prepend" in json.dumps(said.get("normalizer")) or any(scheme in before for scheme in schemes)
