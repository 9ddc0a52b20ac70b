import torch
from torch import Tensor

from factory.methods.full.run import attach
from factory.methods.galore.spec import projected
from factory.optimizers import low_rank

__all__ = ["attach", "optimizer"]


class GaLore(low_rank.LowRank):
    """Algorithm 2 of the paper, around any optimizer."""

    def draw(self, gradient: Tensor) -> Tensor:
        """The gradient's first singular vectors of the shorter side."""
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        return (left if self.left else right.mT)[..., : self.rank].contiguous()

    def direction(self, gradient: Tensor, low: Tensor, normalized: Tensor) -> Tensor:
        return self.project_back(normalized).mul_(self.scale)


optimizer = low_rank.around(GaLore, projected)
