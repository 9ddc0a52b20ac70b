"""Answers that the model samples itself, in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from factory.attention.segments import with_masks
from factory.data import batches
from factory.logits import text_model


@dataclass(frozen=True, slots=True)
class Sampling:
    """As the stages' keys; top_k None: all tokens. `greedy`: the likeliest token, nothing is drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`ids` end with the token that ended the answer, where it has `ended`."""

    prompt: list[int]
    ids: list[int]
    ended: bool

    @property
    def said(self) -> list[int]:
        """Without the token that ended it, which a decoder shows where it was added to the tokenizer."""
        return self.ids[:-1] if self.ended else self.ids


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    pad: int,
    stops: Iterable[int],
    device: str,
    call: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    beside: Callable[[NDArray[np.int64]], dict[str, torch.Tensor]] | None = None,
) -> list[Answer]:
    """An answer to each prompt, all sampled side by side. What is drawn comes from torch's global generator.

    Prompts are padded on the left, where nothing attends to. The model must be in evaluation mode; `call` is what calls
    one whose weights are split. `stops` end an answer, and so does what the model's own file says. `beside` makes of
    the padded prompts (rows, length) what the model takes beside them.
    """
    ids, seen = _left_padded(prompts, pad)
    drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    more = {} if beside is None else {name: value.to(device) for name, value in beside(ids.numpy()).items()}
    inner = text_model(model)
    ends = [*stops, *own_ends(inner)]
    with with_masks(inner), only_as_asked(inner), _head_read_once(inner):
        write = partial(
            inner.generate,
            input_ids=ids.to(device),
            attention_mask=seen.to(device),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not sampling.greedy,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=ends,
            **({} if sampling.greedy else drawing),
            **more,
        )
        given = call(write)
    rows = given[:, ids.shape[1] :].tolist()
    return [answer(prompt, row, ends) for prompt, row in zip(prompts, rows, strict=True)]


def _left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts, and 1 where they stand: (rows, length) each."""
    longest = batches.padded(max(map(len, prompts)))
    ids = torch.full((len(prompts), longest), pad)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, longest - len(prompt) :] = 1
    return ids, seen


def answer(prompt: list[int], row: list[int], stops: Sequence[int]) -> Answer:
    """What was generated up to the first token that ends it; what follows there is padding."""
    end = next((place for place, token in enumerate(row) if token in stops), None)
    return Answer(prompt, row if end is None else row[: end + 1], end is not None)


def own_ends(model: Any) -> list[int]:
    """The tokens that end an answer by the model's generation_config.json, as transformers reads it."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    return found if isinstance(found, list) else [] if found is None else [found]


@contextmanager
def only_as_asked(inner: Any) -> Iterator[None]:
    """Without what the model's generation_config.json says: its penalties and filters would make another policy."""
    from transformers import GenerationConfig

    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


@contextmanager
def _head_read_once(inner: Any) -> Iterator[None]:
    """With contiguous states before the head.

    A model's last states are a slice of all. Torch multiplies a frozen bfloat16 weight by such a slice, on a CPU, as a
    batch with a copy of the weight for each row.
    """
    head = inner.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: tuple(each.contiguous() for each in states))
    try:
        yield
    finally:
        hook.remove()
