"""What the engines of several ranks have in common."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from factory.architecture import Architecture
from factory.data.batches import Step
from factory.execute.context import Run
from factory.stages.loss import Watched, over_ranks
from factory.steps.engine import Engine
from factory.steps.feed import autocast


class Root(torch.nn.Module):
    """Calls a function within its forward pass, around which the libraries do their part.

    What it returns must be tensors in tuples and dictionaries: those are what the libraries look for.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Shared(Engine):
    """Of a rank. The libraries take the mean of the ranks' gradients, and a loss is a sum over them.

    So each loss is multiplied by their number, which leaves the mean over the units of the whole step exactly as one
    process has it. `root` is called with the function that computes the loss.
    """

    root: Callable[[Callable[[], Any]], Any]

    def __init__(self, run: Run, model: Any, arch: Architecture):
        super().__init__(run, model, arch)
        self._world = run.world
        torch.manual_seed(run.plan.settings.seed + run.world.rank)  # else all drop the same

    def _pass(self, batch: dict[str, Any], units: float, *, counted: bool, last: bool) -> tuple[Any, dict[str, Any]]:
        with self._syncing(last):
            with autocast(self._run.plan):
                total, metrics = self.root(partial(self._terms, batch))
                loss = total / units
                slope = loss * (self._world.size if counted else 0)
            if last and (penalty := self._penalty()) is not None:  # in full precision, as one process has it
                slope = slope + penalty
            self._backward(self._scaler.scale(slope), last=last)
        return loss.detach(), metrics

    def _of_all(self, sums: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(sums)
        return sums

    def _syncing(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are shared after the last micro-batch, and only added up before it."""
        return nullcontext()

    def _backward(self, loss: Any, *, last: bool) -> None:
        loss.backward()

    def _penalize(self) -> None:
        """It was added to the last micro-batch's loss, whose gradients are shared."""

    def accumulate(self, step: Step) -> tuple[Any, Watched]:
        loss, watched = super().accumulate(step)
        return self._of_all(loss.double()), watched  # as sums of numbers are made

    def means(self, watched: Watched) -> dict[str, float]:
        return over_ranks(self._world, 0.0, watched)[1].means()


def about_bytes(trained: dict[str, Any]) -> int:
    """Of a checkpoint of tensors that are split, about: them and AdamW's two moments. No rank is asked for its part."""
    return 3 * sum(value.nbytes for value in trained.values())


def agree(run: Run, tensors: dict[str, Any]) -> bool:
    """Whether the tensors are the same on all ranks, by two sums of each."""
    sums = [[float(value.detach().double().sum()), float(value.detach().double().norm())] for value in tensors.values()]
    return all(found == sums for found in run.world.gathered(sums))


@contextmanager
def swapped(model: Any, names: Iterable[str], gathered: Callable[[Any], Any]) -> Iterator[None]:
    """Whole tensors in the places of these parameters, which come back afterwards; only on the rank that is given any.

    `gathered` makes a parameter whole, called by all ranks together: None on those that do not keep it. Tied parameters
    stay tied.
    """
    held: list[tuple[Any, str, Any]] = []
    made: dict[int, Any] = {}
    try:
        for name in names:
            path, _, last = name.rpartition(".")
            module = model.get_submodule(path)
            old = module._parameters[last]
            if id(old) not in made:
                value = gathered(old)
                made[id(old)] = None if value is None else torch.nn.Parameter(value, requires_grad=old.requires_grad)
            if (new := made[id(old)]) is not None:
                held.append((module, last, old))
                module._parameters[last] = new
        yield
    finally:
        for module, last, old in held:
            module._parameters[last] = old
