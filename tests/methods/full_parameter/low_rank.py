"""What the tests of GaLore and APOLLO share: one matrix, its gradients, and Adam at a low rank in float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

SHAPES = {"wide": (12, 20), "tall": (20, 12), "square": (12, 12), "stacked": (3, 12, 20)}


def gradients(shape: tuple[int, ...], count: int = 7) -> list[Tensor]:
    torch.manual_seed(1)
    common = torch.randn(shape)
    return [common + torch.randn(shape) * 0.3 for _ in range(count)]


class Adam:
    """Kingma and Ba 2015, algorithm 1, up to the rate."""

    def __init__(self) -> None:
        self.first: Any = 0.0
        self.second: Any = 0.0
        self.steps = 0

    def __call__(self, gradient: Any) -> Any:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return first / (np.sqrt(second) + 1e-8)
