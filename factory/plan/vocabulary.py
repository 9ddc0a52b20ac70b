"""A vocabulary that grows: how many rows there are then, which of them are new, and how these train. No torch."""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from factory.architecture import Architecture, Shape
from factory.config.parsed import json_of
from factory.plan.plan import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """`rows` of the embedding before and after; `new` are the ids whose rows nobody has trained yet."""

    before: int
    after: int
    new: range


def vocabulary(*, rows: int, tokens: int, added: int, multiple: int | None) -> Vocabulary:
    """Of an embedding of so many rows and a tokenizer of so many tokens, to which some are added.

    Many models have spare rows: new tokens take those first. A tokenizer that has more tokens than there are rows
    makes them grow without any token added.
    """
    needed = tokens + added
    after = rows if needed <= rows else ceil(needed / (multiple or 1)) * (multiple or 1)
    return Vocabulary(
        before=rows, after=after, new=range(min(rows, tokens), needed) if added or tokens > rows else range(0)
    )


def resized(arch: Architecture, rows: int) -> Architecture:
    """The architecture with so many rows in its embedding and its head."""
    grown = {f"{arch.embedding}.weight", f"{arch.head}.weight", f"{arch.head}.bias"}
    outside = {name: (rows, *shape[1:]) if name in grown else shape for name, shape in arch.outside.items()}
    return replace(arch, vocabulary=rows, outside=outside)


def as_said(plan: Patch) -> Vocabulary:
    return Vocabulary(before=plan.rows, after=plan.vocabulary, new=range(*plan.new_rows))


def grown(arch: Architecture, planned: Vocabulary) -> Architecture:
    return replace(resized(arch, planned.after), new_rows=planned.new)


def layers(arch: Architecture) -> tuple[str, ...]:
    """The modules that have a row for each token, tied ones once."""
    return (arch.embedding,) if arch.tied else (arch.embedding, arch.head)


def adapted(arch: Architecture, new: range) -> dict[str, Any]:
    """What a LoraConfig says so that new rows train, and they alone; nothing where there are none.

    PEFT keeps them as a (new, width) tensor of their own, which is saved with the adapter and replaces those rows
    when it is loaded, a tied head's too. The same with `modules_to_save` would train and save every row.
    """
    return {"trainable_token_indices": {name: list(new) for name in layers(arch)}} if new else {}


def trainable(arch: Architecture, new: range) -> dict[str, Shape]:
    """The tensors that `adapted` makes trainable, as PEFT names them."""
    at = "base_model.model.{}.token_adapter.trainable_tokens_delta.default"
    return {at.format(name): (len(new), *arch.outside[f"{name}.weight"][1:]) for name in layers(arch)} if new else {}


def tokens_in(folder: Path) -> int | None:
    """One more than the highest id in a folder's tokenizer.json; None where there is no such file, or another form."""
    try:
        said = json_of((folder / "tokenizer.json").read_bytes())
        known = said["model"]["vocab"]  # {token: id}, or a list of (token, score) in the order of the ids
        ids = known.values() if isinstance(known, dict) else range(len(known))[-1:]
        ids = [*ids, *(token["id"] for token in said["added_tokens"])]
        return 1 + _id(max(ids)) if ids else 0
    except (OSError, ValueError, KeyError, TypeError):
        return None


def added_tokens(folder: Path) -> dict[str, int]:
    """The ids of the tokens that a folder's tokenizer.json has beside its vocabulary; none where there is no file."""
    try:
        said = json_of((folder / "tokenizer.json").read_bytes())
        return {str(token["content"]): _id(token["id"]) for token in said["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _id(said: Any) -> int:
    """A token's id, which tokenizers hold in 32 bits. Raises ValueError."""
    if type(said) is not int or not 0 <= said < 2**32:
        raise ValueError(f"{said!r} is no id of a token")
    return said
