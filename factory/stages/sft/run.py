from functools import partial
from math import sqrt
from typing import Any

import torch

from factory.losses import causal_lm
from factory.stages.loss import Loss


def loss(model: Any, batch: dict[str, Any], _own: dict[str, Any]) -> Loss:
    return Loss(causal_lm(model, batch))


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
