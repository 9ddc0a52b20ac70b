"""Growing the vocabulary of a tokenizer and of a model, as factory/plan/vocabulary.py says."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

from factory.config.refusal import refuse
from factory.plan.vocabulary import Vocabulary

# how far a new row lies from the mean, as a share of the old rows' covariance (Hewitt 2021, "Initializing New Word
# Embeddings for Pretrained Language Models": x ~ N(mean, 1e-5 covariance)); near the mean the new tokens start
# improbable everywhere, and the old tokens' probabilities move the least
_SHARE = 1e-5
_AT_ONCE = 8192  # old rows that are read at a time


def tokens_of(tokenizer: Any) -> int:
    """One more than the highest id: some vocabularies have holes, and len() counts entries."""
    return max(tokenizer.get_vocab().values()) + 1


def add_tokens(tokenizer: Any, tokens: tuple[str, ...]) -> None:
    """Each is one id from then on, and text that a decoder shows. Raises UserError for one that is there already."""
    if not tokens:
        return
    there = tokenizer.get_vocab()
    known = [token for token in tokens if token in there]
    if known:
        raise refuse(
            "token-known",
            "model.new_tokens",
            f"the tokenizer has {known[0]!r} already",
            because="each new token gets a row of its own",
            fix="leave it out of model.new_tokens",
        )
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
