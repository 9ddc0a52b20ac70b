from math import gcd
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.badam.run import attach, begin_step
from factory.methods.badam_ratio.spec import Settings, chosen
from factory.optimizers.turns import Turns
from factory.plan.plan import Compiled
from factory.rounding import rounded

__all__ = ["attach", "begin_step", "optimizer"]


def indices(settings: Settings, size: int, turn: int, seed: int, device: torch.device | None = None) -> Tensor:
    """The elements that are trained in a turn. Turns follow each other through the tensor, and start over at its end.

    Scattered: the tensor is gone through by a stride that shares no divisor with its size, so that each is met once.
    """
    count = chosen(settings, size)
    places = (turn * count + torch.arange(count, device=device)) % size
    if settings.mask == "adjacent" or count == size:
        return places
    stride = seed % size
    while gcd(stride, size) != 1:
        stride = (stride + 1) % size
    return places * stride % size


class Shares(Turns):
    """The chosen elements of every tensor, stepped as float32."""

    def __init__(self, model: Any, settings: Settings, plan: Compiled, arch: Architecture):
        super().__init__(model, plan, arch)
        self.settings = settings
        self.seeds = {name: crc32(f"{torch.initial_seed()} {name}".encode()) for name in self.tensors}

    def chosen(self, turn: int) -> set[str]:
        return set(self.tensors)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """A matrix's elements stay a matrix, of one row: its weight decays."""
        elements = whole.flatten()[self._places(name)].float()
        return elements[None] if whole.ndim >= 2 else elements

    def write(self, name: str, tensor: Tensor) -> None:
        tensor.view(-1)[self._places(name)] = rounded(self.copies[name].flatten(), tensor.dtype)

    def _places(self, name: str) -> Tensor:
        """Drawn where they are needed: kept, they would take 8 bytes an element."""
        tensor = self.tensors[name]
        return indices(self.settings, tensor.numel(), self.turn, self.seeds[name], tensor.device)


def optimizer(model: Any, settings: Settings, plan: Compiled, arch: Architecture) -> Any:
    return Shares(model, settings, plan, arch)
