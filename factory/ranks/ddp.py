"""ddp: all of the model in each rank, gradients shared by torch's DistributedDataParallel."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from factory.architecture import Architecture
from factory.execute.context import Run
from factory.ranks.shared import Root, Shared, agree


class Ddp(Shared):
    def __init__(self, run: Run, model: Any, arch: Architecture):
        super().__init__(run, model, arch)
        assert agree(run, self.trained), "the ranks start from different weights"
        with warnings.catch_warnings():  # its word for broadcast_buffers is not there in older versions
            warnings.simplefilter("ignore", FutureWarning)
            self._parallel = DistributedDataParallel(Root(model), **run.plan.steps.train.ranks.configuration)
        self.root = self._parallel

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._parallel.no_sync()

    def finish(self) -> None:
        super().finish()
        same = agree(self._run, self.trained)
        ranks = self._run.plan.settings.hardware.num_processes
        self._run.check("ranks_agree", same, f"{len(self.trained)} trained tensors on {ranks} ranks")
