"""Logits to a token, by each answer's own settings and random numbers: who else writes beside it changes none."""

import logging
from collections.abc import Sequence
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
        self._generator = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token, whatever it is."""
        return self._generator is None and self._allowed is None and self._sampling.top_logprobs is None

    def draw(self, logits: Tensor) -> Token:
        """logits: (vocabulary), in float32."""
        told = logits
        if self._allowed is not None:
            logits = logits.clone()
            self._allowed.mask(logits)
        token = int(logits.argmax()) if self._generator is None else self._drawn(logits)
        if self._allowed is not None:
            self._allowed.accept(token)
        if self._sampling.top_logprobs is None:
            return Token(token)
        logs = told.log_softmax(-1)
        values, ids = logs.topk(self._sampling.top_logprobs) if self._sampling.top_logprobs else (logs[:0], logs[:0])
        top = tuple((int(each), float(value)) for each, value in zip(ids, values, strict=True))
        return Token(token, float(logs[token]), top)

    def _drawn(self, logits: Tensor) -> int:
        """First top_k, then top_p: the fewest of the likeliest that have this probability together."""
        sampling, logits = self._sampling, _cooled(logits.cpu(), self._sampling.temperature)
        if sampling.top_k is None and sampling.top_p == 1:
            return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
        if sampling.top_k is not None:
            values, ids = logits.topk(min(sampling.top_k, len(logits)))
            chances = values.softmax(-1)
        else:
            chances, ids = _likeliest(logits.softmax(-1), sampling.top_p)
        kept = chances.cumsum(-1) - chances < sampling.top_p
        kept[0] = True  # a share that float32 takes for nothing is the likeliest token's alone
        chances = torch.where(kept, chances, 0.0)
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return (logits - logits.max()) / max(temperature, _COLDEST)


def _likeliest(chances: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Enough of the likeliest, in their order, to have this share: to sort a whole vocabulary takes milliseconds."""
    found = chances.topk(min(_FIRST, len(chances)))
    if float(found.values.sum()) < share:
        found = chances.sort(descending=True)
    return found.values, found.indices


def draw(drawers: Sequence[Drawer], logits: Any) -> list[Token | Done]:
    """A token of each row, or what ends the one that cannot be drawn. logits: (rows, vocabulary)."""
    if all(drawer.plain for drawer in drawers):
        return [Token(token) for token in logits.argmax(-1).tolist()]
    logits = logits.float()
    return [_drawn(drawer, row) for drawer, row in zip(drawers, logits, strict=True)]


def _drawn(drawer: Drawer, logits: Tensor) -> Token | Done:
    """What fails of one answer, as its grammar, fails of that one alone."""
    try:
        return drawer.draw(logits)
    except Exception as error:
        _log.exception("an answer could not be drawn")
        return failed(error)
