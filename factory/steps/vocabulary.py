"""Growing the vocabulary: how many rows, which of them are new, how these start and how they train.

The formulas need no torch, so that a plan is exact; `grow` is what they say, done to a model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from typing import Any

from factory.architecture import Architecture, Shape
from factory.plan import Patch
from factory.refusal import refuse

# how far a new row lies from the mean, as a share of the old rows' covariance (Hewitt 2021, "Initializing New Word
# Embeddings for Pretrained Language Models": x ~ N(mean, 1e-5 covariance)); near the mean the new tokens start
# improbable everywhere, and the old tokens' probabilities move the least
_SHARE = 1e-5
_AT_ONCE = 8192  # old rows that are read at a time


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
        said = json.loads((folder / "tokenizer.json").read_bytes())
        known = said["model"]["vocab"]  # {token: id}, or a list of (token, score) in the order of the ids
        highest = max(known.values()) if isinstance(known, dict) else len(known) - 1
        return 1 + max(highest, *(token["id"] for token in said["added_tokens"]), -1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def tokens_of(tokenizer: Any) -> int:
    """One more than the highest id: some vocabularies have holes, and len() counts entries."""
    return max(tokenizer.get_vocab().values()) + 1


def add_tokens(tokenizer: Any, tokens: tuple[str, ...]) -> None:
    """Each is one id from then on, and text that a decoder shows. Raises UserError for one that is there already."""
    there = tokenizer.get_vocab()
    known = [token for token in tokens if token in there]
    if known:
        raise refuse("token-known", "model.new_tokens", f"the tokenizer has {known[0]!r} already")
    from transformers import AddedToken

    given = tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    assert given == len(tokens), (given, tokens)


def grow(model: Any, planned: Vocabulary, seed: int) -> None:
    """Makes embedding and head as large as planned. New rows start near the mean of the old ones, a bias at the mean.

    A tied head stays tied. Done twice it changes nothing: the noise is drawn on the CPU, and the same seed gives the
    same rows on any device.
    """
    import torch

    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    if table.weight.shape[0] != planned.after:
        model.resize_token_embeddings(planned.after, mean_resizing=False)
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert head is None or tied == (head.weight is table.weight), "a head is no longer tied, or has become so"
    first = planned.new.start
    fresh = [*planned.new, *range(max(planned.before, planned.new.stop), planned.after)]
    if not fresh:
        return
    generator = torch.Generator().manual_seed(seed)
    weights = [table.weight] if tied or head is None else [table.weight, head.weight]
    with torch.no_grad():
        for weight in weights:
            weight[fresh] = near_mean(weight[:first], len(fresh), generator).to(weight)
        if head is not None and head.bias is not None:
            head.bias[fresh] = head.bias[:first].mean()


def near_mean(old: Any, count: int, generator: Any) -> Any:
    """(count, width) draws of N(mean, 1e-5 covariance) of the old rows (rows, width), in float32.

    With z standard normal, z @ (old - mean) / sqrt(rows) has exactly that covariance: no factorization, and no matrix
    of (width, width).
    """
    import torch

    mean = sum(part.double().sum(0) for part in _parts(old)) / len(old)
    noise = torch.zeros(count, old.shape[1], device=old.device)
    for part in _parts(old):
        drawn = torch.randn(count, len(part), generator=generator).to(old.device)
        noise += drawn @ (part.double() - mean).float()
    return (mean + noise * sqrt(_SHARE / len(old))).float()


def _parts(old: Any) -> Iterator[Any]:
    for start in range(0, len(old), _AT_ONCE):
        yield old[start : start + _AT_ONCE]
