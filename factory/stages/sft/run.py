from contextlib import suppress
from functools import partial
from math import sqrt
from typing import Any

import torch

from factory.data.encode import chat as examples
from factory.data.encode import rendered
from factory.data.formats import BadRow, Record
from factory.losses import causal_lm as loss
from factory.plan import Pack

__all__ = ["examples", "loss", "prepare", "prompts"]


def prepare(model: Any, own: dict[str, Any]) -> None:
    """Called once before training, with the stage's own keys."""
    if own["neftune_alpha"] is not None:
        model.get_input_embeddings().register_forward_hook(partial(_add_noise, own["neftune_alpha"]))


def _add_noise(alpha: float, embedding: Any, _inputs: Any, embedded: Any) -> Any:
    """In training: uniform in ± alpha / sqrt(length x width), on embeddings of (batch, length, width).

    NEFTune, Jain et al. 2023, arXiv 2310.05914, algorithm 1.
    """
    if not embedding.training:
        return embedded
    _, length, width = embedded.shape
    bound = alpha / sqrt(length * width)
    return embedded + torch.empty_like(embedded).uniform_(-bound, bound)


def prompts(records: list[Record], tokenizer: Any, pack: Pack) -> list[tuple[str, list[int]]]:
    """Conversations up to the last answer, which is to be given; those that the template refuses are left out."""
    found = []
    for record in records:
        with suppress(BadRow):
            text = rendered(tokenizer, list(record.prompt), add_generation_prompt=True)
            found.append((record.prompt[-1]["content"], tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found
