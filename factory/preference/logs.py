"""Logarithms that stay finite."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def log_sigmoid(value: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid

    return logsigmoid(value)


def log_odds(log_probs: "Tensor") -> "Tensor":
    """log(p / (1 - p)); a certain answer's p is taken one rounding below 1, where the odds are still finite."""
    import torch

    below = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return below - (-below.expm1()).log()
