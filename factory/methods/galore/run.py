from functools import partial
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.full.run import attach
from factory.methods.galore.spec import Settings, projected
from factory.optimizers import low_rank
from factory.plan import Train

__all__ = ["attach", "optimizer"]


class GaLore(low_rank.LowRank):
    """Algorithm 2 of the paper, around any optimizer."""

    def __init__(self, settings: Settings, plan: Train, arch: Architecture, name: str, matrix: Tensor):
        super().__init__(name, matrix, plan, arch, rank=settings.rank, interval=settings.update_interval)
        self.scale = settings.scale

    def draw(self, gradient: Tensor) -> Tensor:
        """The gradient's first singular vectors of the shorter side."""
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        return (left if self.left else right.mT)[..., : self.rank].contiguous()

    def direction(self, gradient: Tensor, low: Tensor, normalized: Tensor) -> Tensor:
        return self.project_back(normalized).mul_(self.scale)


def optimizer(model: Any, settings: Settings, plan: Train, arch: Architecture) -> Any:
    return low_rank.optimizer(
        model,
        plan,
        arch,
        projects=projected(arch).__contains__,
        make=partial(GaLore, settings, plan, arch),
        layerwise=settings.layerwise,
        max_norm=settings.max_grad_norm_per_tensor,
    )
