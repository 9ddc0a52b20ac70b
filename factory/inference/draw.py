"""Logits to a token, by each answer's own settings and random numbers: who else writes beside it changes none.

Tokens are drawn where the logits are, and read together when all rows have one.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from factory.inference.types import Allowed, Done, Sampling, Token, failed

_log = logging.getLogger(__name__)
_FIRST = 512  # of the likeliest tokens
_COLDEST = 1e-5  # below it numbers leave float32, and the likeliest token is all there is


class Drawer:
    """Of one answer."""

    def __init__(self, sampling: Sampling, allowed: Allowed | None):
        self._sampling, self._allowed = sampling, allowed
        self._generator: torch.Generator | None = None  # on the device of the logits, from the first draw on

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token, whatever it is."""
        return self._sampling.temperature <= 0 and self._allowed is None and self._sampling.top_logprobs is None

    def draw(self, logits: Tensor) -> Token:
        """Return the next token of one row. logits: (vocabulary), in float32."""
        return self.accepted(int(self.chosen(logits)), logits)

    def chosen(self, logits: Tensor) -> Tensor:
        """Return the next token: a scalar on the device of the logits, (vocabulary) in float32."""
        if self._allowed is not None:
            logits = logits.clone()
            self._allowed.mask(logits)
        return logits.argmax() if self._sampling.temperature <= 0 else self._drawn(logits)

    def accepted(self, token: int, logits: Tensor) -> Token:
        """Return the token that was chosen by these logits with its probabilities; a grammar goes on from it."""
        if self._allowed is not None:
            self._allowed.accept(token)
        if self._sampling.top_logprobs is None:
            return Token(token)
        logs = logits.log_softmax(-1)
        values, ids = logs.topk(self._sampling.top_logprobs) if self._sampling.top_logprobs else (logs[:0], logs[:0])
        return Token(token, float(logs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _seeded(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device)
            if self._sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._sampling.seed)
        return self._generator

    def _drawn(self, logits: Tensor) -> Tensor:
        """First top_k, then top_p: the fewest of the likeliest that have this probability together."""
        generator = self._seeded(logits.device)
        sampling, logits = self._sampling, _cooled(logits, self._sampling.temperature)
        if sampling.top_k is None and sampling.top_p == 1:
            return torch.multinomial(logits.softmax(-1), 1, generator=generator)[0]
        if sampling.top_k is not None:
            values, ids = logits.topk(min(sampling.top_k, len(logits)))
            chances = values.softmax(-1)
        else:
            chances, ids = _likeliest(logits.softmax(-1), sampling.top_p)
        kept = chances.cumsum(-1) - chances < sampling.top_p
        kept[0] = True  # a share that float32 takes for nothing is the likeliest token's alone
        chances = torch.where(kept, chances, 0.0)
        return ids[torch.multinomial(chances, 1, generator=generator)][0]


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return (logits - logits.max()) / max(temperature, _COLDEST)


def _likeliest(chances: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return enough of the likeliest, in their order, to have this share, and where they are.

    To sort a whole vocabulary takes a CPU milliseconds; to look whether some are enough, a GPU would be waited for.
    """
    first = chances.topk(min(_FIRST, len(chances))) if chances.device.type == "cpu" else None
    if first is None or float(first.values.sum()) < share:
        return chances.sort(descending=True)
    return first.values, first.indices


def draw(drawers: Sequence[Drawer], logits: Any) -> list[Token | Done]:
    """A token of each row, or what ends the one that cannot be drawn. logits: (rows, vocabulary)."""
    if all(drawer.plain for drawer in drawers):
        return [Token(token) for token in logits.argmax(-1).tolist()]
    rows = [*logits.float()]
    chosen = [_tried(drawer.chosen, row) for drawer, row in zip(drawers, rows, strict=True)]
    there = [each for each in chosen if isinstance(each, Tensor)]
    tokens = iter(torch.stack(there).tolist() if there else ())  # of all rows at once
    return [
        each if isinstance(each, Done) else _tried(drawer.accepted, next(tokens), row)
        for drawer, row, each in zip(drawers, rows, chosen, strict=True)
    ]


def _tried(function: Callable[..., Any], *given: Any) -> Any:
    """Return what the function does, or what ends the answer: a grammar that fails ends no other row."""
    try:
        return function(*given)
    except Exception as error:
        _log.exception("an answer could not be drawn")
        return failed(error)
