from math import sqrt
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.apollo.spec import Settings, projected
from factory.methods.full.run import attach
from factory.optimizers import low_rank
from factory.plan import Train

__all__ = ["attach", "optimizer"]


class Apollo(low_rank.LowRank):
    """Algorithm 1 of the paper, with the norm-growth limiter of its section 4.1."""

    reads_gradient = True

    def __init__(self, settings: Settings, plan: Train, arch: Architecture, name: str, matrix: Tensor):
        super().__init__(settings, plan, arch, name, matrix)
        self.scaling, self.limit = settings.scaling, settings.growth_limit
        self.last_norm: Tensor | None = None

    def draw(self, gradient: Tensor) -> Tensor:
        """Normal numbers of variance 1 / rank. They come from torch's own state, which a checkpoint has."""
        shorter = min(gradient.shape[-2:])
        shape = (*gradient.shape[:-2], shorter, self.rank)
        return torch.randn(shape, device=gradient.device) / sqrt(self.rank)

    def direction(self, low: Tensor, normalized: Tensor) -> Tensor:
        """The gradient, each channel (of the longer side) or all of it times what the update was to the gradient."""
        over = (-2, -1) if self.scaling == "tensor" else (-2 if self.left else -1)
        before = torch.linalg.vector_norm(low, dim=over, keepdim=True)
        after = torch.linalg.vector_norm(normalized, dim=over, keepdim=True)
        assert self.matrix.grad is not None
        scaled = self.matrix.grad.float() * torch.where(before > 0, after / before, 0.0) * self.scale
        norm = scaled.norm()
        if self.last_norm is not None:
            most = torch.where(self.last_norm > 0, self.limit * self.last_norm, norm)  # nothing limits no growth
            scaled.mul_(torch.where(norm > most, most / norm, 1.0))
            norm = torch.minimum(norm, most)
        self.last_norm = norm
        return scaled

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last_norm": self.last_norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        last = state["last_norm"]
        self.last_norm = None if last is None else torch.as_tensor(last, device=self.matrix.device)


optimizer = low_rank.around(Apollo, projected)
