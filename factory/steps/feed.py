"""The batches of a run in their order, as tensors; and the numbers in which they are computed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from factory import registry, schedules
from factory.data import batches, stream
from factory.execute.context import Run
from factory.plan import Plan, Train
from factory.stages.loss import Unit
from factory.steps.pack import Dataset


def autocast(plan: Plan) -> Any:
    """The mixed precision of a plan, as a context; none where it has none."""
    import torch

    kind = plan.steps.train.autocast
    return torch.autocast(plan.steps.load.device, getattr(torch, kind or "float32"), enabled=kind is not None)


def total_steps(plan: Train, dataset: Dataset) -> int:
    if dataset.stream is not None:
        assert plan.max_steps is not None  # a rule
        return plan.max_steps
    shape = (len(dataset.train), plan.batch_size, plan.gradient_accumulation_steps)
    return schedules.total_steps(*shape, plan.num_epochs, plan.max_steps)


def collating(run: Run, dataset: Dataset) -> Callable[[list[Any]], dict[str, Any]]:
    """What makes a micro-batch of samples."""
    return partial(
        batches.collate,
        pad=dataset.pad,
        device=run.plan.steps.load.device,
        max_length=run.plan.steps.pack.max_length,
        pictures=dataset.pictures,
        others=dataset.train,
    )


def feed(
    run: Run, dataset: Dataset, first: int, last: int, position: dict[str, Any] | None = None
) -> Iterator[batches.Step]:
    """The optimizer steps from `first` up to `last`; of a stream, those from its position on."""
    plan, collate = run.plan.steps.train, collating(run, dataset)
    size, accumulation = plan.batch_size, plan.gradient_accumulation_steps
    if dataset.stream is None:
        return batches.steps(dataset.train, size, accumulation, run.plan.seed, first, last, collate)
    return dataset.stream.steps(
        size, accumulation, collate, None if position is None else stream.Position.from_json(position)
    )


def unit(plan: Plan) -> Unit:
    """What the stage's loss is the mean over."""
    return registry.hook(registry.spec("stages", plan.steps.train.stage), "UNIT", "tokens")
