"""Logits to a token, by each answer's own settings and random numbers: who else writes beside it changes none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factory.inference.types import Allowed, Sampling, Token


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
        sampling = self._sampling
        values, ids = (logits.cpu() / sampling.temperature).sort(descending=True)
        if sampling.top_k is not None:
            values = values[: sampling.top_k]
        chances = values.softmax(-1)
        if sampling.top_p < 1:
            before = chances.cumsum(-1) - chances
            chances = torch.where(before < sampling.top_p, chances, 0.0)
        return int(ids[torch.multinomial(chances, 1, generator=self._generator)])


def draw(drawers: Sequence[Drawer], logits: Any) -> list[Token]:
    """A token of each row. logits: (rows, vocabulary)."""
    if all(drawer.plain for drawer in drawers):
        return [Token(token) for token in logits.argmax(-1).tolist()]
    logits = logits.float()
    return [drawer.draw(row) for drawer, row in zip(drawers, logits, strict=True)]
