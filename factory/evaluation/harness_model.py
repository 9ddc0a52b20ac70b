"""The model that Factory has loaded, as lm-evaluation-harness calls one. Imports torch and lm_eval."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.model import CacheHook  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

from factory.rollouts.sample import own_ends

_HFLM: Any = HFLM  # whose decorator hides what it takes
Call = Callable[[Callable[[], Any]], Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Called:
    """What the library takes for a transformers model; being no module, it is not changed by it (weights tied anew).

    `call` is what calls a model whose weights are split, with the mixed precision of the plan. `stop` is called before
    each batch and ends it all by raising. `ends` are the tokens that end an answer in training.
    """

    model: Any
    device: torch.device
    call: Call
    stop: Callable[[], None]
    ends: Sequence[int]

    @property
    def config(self) -> Any:
        return self.model.config

    def __call__(self, ids: torch.Tensor) -> SimpleNamespace:
        self.stop()
        return SimpleNamespace(logits=self.call(lambda: self.model(input_ids=ids).logits))

    def generate(self, **options: Any) -> torch.Tensor:
        """An answer ends as the model's own file says, or as in training: so does one of what `factory export` writes.

        What ends it becomes padding: a decoder would show a token that was added to the tokenizer.
        """
        self.stop()
        options = {"eos_token_id": list(dict.fromkeys([*own_ends(self.model), *self.ends])), **options}
        with torch.no_grad():
            made = self.call(lambda: self.model.generate(**options))
        return made.masked_fill(torch.isin(made, made.new_tensor(self.ends)), options["pad_token_id"])


class Counted(CacheHook):
    """Told of each request as it is answered."""

    def __init__(self, progress: Progress):
        super().__init__(None)
        self._progress, self.done, self.total = progress, 0, 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.done = min(self.done + 1, self.total)
        self._progress(self.done, self.total)


class Loaded(_HFLM):
    """The library's own way to ask a transformers model, without its bars."""

    def __init__(self, called: Called, tokenizer: Any, *, batch_size: int, context: int, progress: Progress):
        with _quiet():
            super().__init__(
                pretrained=called,
                backend="causal",
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=context,
                # as the library has it in float32: sums of rounded logarithms would be no log-likelihoods
                softmax_dtype="float32",
            )
        self._counted = Counted(progress)
        self.set_cache_hook(self._counted)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._count(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        self._count(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        self._count(requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _count(self, requests: list[Any]) -> None:
        self._counted.done, self._counted.total = 0, len(requests)


@contextmanager
def _quiet() -> Iterator[None]:
    """It warns of being given a model, which is what is meant."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
