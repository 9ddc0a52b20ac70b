from math import sqrt
from typing import Any

import torch
from torch import Tensor

from factory.architecture import Architecture
from factory.methods.apollo.spec import Settings, projected
from factory.methods.full.run import attach
from factory.optimizers import low_rank
from factory.plan.plan import Compiled

__all__ = ["attach", "optimizer"]


class Apollo(low_rank.LowRank):
    """Algorithm 1 of the paper, with the norm-growth limiter of its section 4.1."""

    reads_gradient = True

    def __init__(self, settings: Settings, plan: Compiled, arch: Architecture, matrices: dict[str, Tensor]):
        super().__init__(settings, plan, arch, matrices)
        self.scaling, self.limit = settings.scaling, settings.growth_limit
        # of each matrix's last update; 0 limits nothing
        self.norms = {name: torch.zeros((), device=value.device) for name, value in matrices.items()}

    def draw(self, gradient: Tensor) -> Tensor:
        """Return normal numbers of variance 1 / rank. They come from torch's own state, which a checkpoint has."""
        shorter = min(gradient.shape[-2:])
        shape = (*gradient.shape[:-2], shorter, self.rank)
        return torch.randn(shape, device=gradient.device) / sqrt(self.rank)

    def direction(self, names: list[str], low: Tensor, normalized: Tensor) -> Tensor:
        """Return the gradients, each channel (of the longer side) or all of it times the update's size to its own."""
        gradients = low_rank.stacked([low_rank.gradient_of(self.matrices[name]) for name in names])
        over = (-2, -1) if self.scaling == "tensor" else (-2 if low_rank.is_wide(gradients) else -1)
        before = torch.linalg.vector_norm(low, dim=over, keepdim=True)
        after = torch.linalg.vector_norm(normalized, dim=over, keepdim=True)
        scaled = gradients * torch.where(before > 0, after / before, 0.0) * self.scale
        norms, last = scaled.flatten(1).norm(dim=1), low_rank.stacked([self.norms[name] for name in names])
        most = torch.where(last > 0, self.limit * last, norms)
        held = torch.minimum(norms, most)
        self.norms.update(zip(names, held, strict=True))
        shrink = torch.where(norms > most, most / norms, 1.0)
        return scaled.mul_(shrink.view(-1, *[1] * (scaled.ndim - 1)))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.norms = {name: value.to(self.matrices[name].device) for name, value in state["norms"].items()}


optimizer = low_rank.around(Apollo, projected)
