from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor

from factory.execute.memory import give_back
from factory.methods.full.run import attach
from factory.methods.galore.spec import in_the_pass, projected
from factory.optimizers import low_rank

__all__ = ["attach", "optimizer"]


class GaLore(low_rank.LowRank):
    """Algorithm 2 of the paper, around any optimizer."""

    def __init__(self, settings: Any, *matrix: Any):
        super().__init__(settings, *matrix)
        self.factor = settings.scale
        self.lacks = False  # whether of the matrix, or of one of a stack, no projector could be drawn yet

    def is_due(self) -> bool:
        return super().is_due() or (self.lacks and self.matrix.grad is not None)

    @torch.no_grad()
    def refresh(self) -> None:
        """Draws anew where the gradient is neither all zero nor without numbers; elsewhere the old projector stays.

        Of zeros LAPACK gives unit vectors, onto which all gradients until the next turn would be projected, and of what
        is no number it raises, within the backward pass, where it is not yet known that the update is bad. Where there
        is no old one it is zero, and the first gradient that one can be drawn from is waited for.
        """
        assert self.matrix.grad is not None
        gradient = self.matrix.grad.float()
        drawn = gradient.any(dim=-1).any(dim=-1) & gradient.isfinite().all(dim=-1).all(dim=-1)
        if self.projector is not None and self.steps % self.interval:  # it is not yet the others' turn
            drawn &= ~_drawn(self.projector)
        if drawn.all():
            self.projector, self.lacks = self.draw(gradient), False
            return
        if self.projector is None:
            self.projector = gradient.new_zeros((*gradient.shape[:-2], min(gradient.shape[-2:]), self.rank))
        if drawn.any():
            self.projector = self.projector.clone()
            self.projector[drawn] = self.draw(gradient[drawn])
        self.lacks = not bool(_drawn(self.projector).all())

    @staticmethod
    def refresh_all(due: list[low_rank.LowRank]) -> None:
        """LAPACK leaves most cores idle with matrices of thousands of columns: each gets a core of its own."""
        threads = torch.get_num_threads()
        workers = min(threads, low_rank.AT_ONCE // max(each.matrix.numel() for each in due))
        if workers < 2 or due[0].matrix.device.type != "cpu":
            low_rank.LowRank.refresh_all(due)
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(methodcaller("refresh"), due))
        torch.set_num_threads(threads)  # of threads that start later
        give_back()  # what each thread had in a heap of its own

    def draw(self, gradient: Tensor) -> Tensor:
        """The gradient's first singular vectors of the shorter side."""
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        return (left if self.left else right.mT)[..., : self.rank].contiguous()

    def direction(self, low: Tensor, normalized: Tensor) -> Tensor:
        return self.project_back(normalized)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.lacks = self.projector is not None and not bool(_drawn(self.projector).all())


def _drawn(projector: Tensor) -> Tensor:
    """Of which matrices of a stack it is there; of one matrix alone, a single truth."""
    return projector.any(dim=-1).any(dim=-1)


optimizer = low_rank.around(GaLore, projected, in_the_pass)
