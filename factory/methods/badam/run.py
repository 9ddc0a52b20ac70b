from typing import Any

import numpy
import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.badam.spec import Settings, blocks, trainable
from factory.methods.marking import marks
from factory.optimizers.turns import Turns
from factory.plan.plan import Compiled
from factory.rounding import rounded

__all__ = ["attach", "begin_step", "optimizer"]

attach = marks(trainable)


def active(settings: Settings, count: int, turn: int, seed: int) -> int:
    """Which of the blocks has a turn. Each has one before any has another."""
    round_, place = divmod(turn, count)
    if settings.order == "random":
        return int(numpy.random.default_rng([seed, round_]).permutation(count)[place])
    return place if settings.order == "ascending" else count - 1 - place


class Blocks(Turns):
    """A block at a time. In mixed precision it is stepped in float32, otherwise as it is."""

    def __init__(self, model: Any, settings: Settings, plan: Compiled, arch: Architecture):
        super().__init__(model, plan, arch)
        self.settings, self.blocks = settings, blocks(settings, arch)
        self.seed = torch.initial_seed()  # the run's
        self.always = self.tensors.keys() - {name for block in self.blocks for name in block}  # a stage's own heads

    def chosen(self, turn: int) -> set[str]:
        return {*self.blocks[active(self.settings, len(self.blocks), turn, self.seed)], *self.always}

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole if self.plan.steps.train.autocast is None else whole.float()

    def write(self, name: str, tensor: Tensor) -> None:
        tensor.copy_(rounded(self.copies[name], tensor.dtype))


def optimizer(model: Any, settings: Settings, plan: Compiled, arch: Architecture) -> Any:
    return Blocks(model, settings, plan, arch)


def begin_step(optimizer: Turns, settings: Any, step: int, total: int) -> None:
    optimizer.begin(step // settings.switch_interval)
