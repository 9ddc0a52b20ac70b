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

    def __init__(self, settings: Any, *matrix: Any):
        super().__init__(settings, *matrix)
        self.factor = settings.scale

    @staticmethod
    def refresh_all(due: list[low_rank.LowRank]) -> None:
        """LAPACK leaves most cores idle with matrices of thousands of columns: each gets a core of its own."""
        threads = torch.get_num_threads()
        workers = min(threads, low_rank.AT_ONCE // max(each.matrix.numel() for each in due))
        if workers < 2 or due[0].matrix.device.type != "cpu":
            low_rank.LowRank.refresh_all(due)
            return
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(low_rank.LowRank.refresh, due))
        torch.set_num_threads(threads)  # of threads that start later
        give_back()  # what each thread had in a heap of its own

    def draw(self, gradient: Tensor) -> Tensor:
        """The gradient's first singular vectors of the shorter side; no numbers where it is not finite.

        LAPACK would raise within the backward pass, where it is not yet known that the update is bad.
        """
        if not gradient.isfinite().all():
            return gradient.new_full((*gradient.shape[:-2], min(gradient.shape[-2:]), self.rank), float("nan"))
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        return (left if self.left else right.mT)[..., : self.rank].contiguous()

    def direction(self, low: Tensor, normalized: Tensor) -> Tensor:
        return self.project_back(normalized)


optimizer = low_rank.around(GaLore, projected, in_the_pass)
