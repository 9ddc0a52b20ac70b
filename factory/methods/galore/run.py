from concurrent.futures import ThreadPoolExecutor
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

    def __init__(self, settings: Any, *more: Any):
        super().__init__(settings, *more)
        self.factor = settings.scale
        self.lacks = set[str]()  # matrices that no projector could be drawn of yet, or of one of their stack

    def is_due(self, name: str) -> bool:
        return super().is_due(name) or name in self.lacks

    def refresh(self, names: list[str]) -> None:
        """LAPACK leaves most cores idle with matrices of thousands of columns: each gets a core of its own."""
        threads = torch.get_num_threads()
        workers = min(threads, low_rank.AT_ONCE // max((self.matrices[name].numel() for name in names), default=1))
        if workers < 2 or len(names) < 2 or self.matrices[names[0]].device.type != "cpu":
            for name in names:
                self._refresh(name)
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(self._refresh, names))
        torch.set_num_threads(threads)  # of threads that start later
        give_back()  # what each thread had in a heap of its own

    @torch.no_grad()
    def _refresh(self, name: str) -> None:
        """Draw a new projector where the gradient is finite and not zero; elsewhere the old projector stays.

        Of zeros LAPACK gives unit vectors, onto which all gradients until the next turn would be projected, and of what
        is not finite it raises, within the backward pass, where it is not yet known that the update is bad. Without an
        old projector it is zero, and the first gradient that one can be drawn from is waited for.
        """
        gradient, old = low_rank.gradient_of(self.matrices[name]), self.projectors.get(name)
        drawn = gradient.any(dim=-1).any(dim=-1) & gradient.isfinite().all(dim=-1).all(dim=-1)
        if old is not None and self.steps[name] % self.interval:  # it is not yet the others' turn
            drawn &= ~_drawn(old)
        if drawn.all():
            self.projectors[name] = self.draw(gradient)
            self.lacks.discard(name)
            return
        shape = (*gradient.shape[:-2], min(gradient.shape[-2:]), self.rank)
        projector = gradient.new_zeros(shape) if old is None else old.clone()
        if drawn.any():
            projector[drawn] = self.draw(gradient[drawn])
        self.projectors[name] = projector
        self._note(name)

    def _note(self, name: str) -> None:
        (self.lacks.discard if bool(_drawn(self.projectors[name]).all()) else self.lacks.add)(name)

    def draw(self, gradient: Tensor) -> Tensor:
        """Return the gradient's first singular vectors of the shorter side."""
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        return (left if low_rank.is_wide(gradient) else right.mT)[..., : self.rank].contiguous()

    def direction(self, names: list[str], low: Tensor, normalized: Tensor) -> Tensor:
        projectors = self.projectors_of(names)
        wide = low_rank.is_wide(self.matrices[names[0]])
        return projectors @ normalized if wide else normalized @ projectors.mT

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.projectors:
            self._note(name)


def _drawn(projector: Tensor) -> Tensor:
    """Return which matrices of a stack have a projector, a single truth for one matrix."""
    return projector.any(dim=-1).any(dim=-1)


optimizer = low_rank.around(GaLore, projected, in_the_pass)
