"""The batches of a run in their order, as tensors; and the numbers in which they are computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from factory import schedules
from factory.ahead import card
from factory.attention import LENGTHS_ON_DEVICE, VARLEN
from factory.config import registry
from factory.data import batches, stream
from factory.execute.context import Run
from factory.plan.plan import Plan, micro_batches
from factory.stages.rows import compares, rows_per_step
from factory.steps.pack import Dataset

Of = Callable[[dict[str, Any]], Any]  # what a batch's rows are measured against: `Reference.of`


def autocast(plan: Plan) -> Any:
    """The mixed precision of a plan, as a context; none where it has none."""
    import torch

    kind = plan.steps.train.autocast
    return torch.autocast(plan.steps.load.device, getattr(torch, kind or "float32"), enabled=kind is not None)


def total_steps(plan: Plan, dataset: Dataset) -> int:
    stage = plan.settings.stage
    if dataset.stream is not None:
        assert stage.max_steps is not None  # a rule
        return stage.max_steps
    return schedules.total_steps(len(dataset.train), rows_per_step(plan), 1, stage.num_epochs, stage.max_steps)


def collating(
    run: Run, dataset: Dataset, reference: Of | None = None, *, padding_free: bool = False
) -> Callable[[list[Any]], dict[str, Any]]:
    """What makes a micro-batch of samples."""
    return partial(
        batches.collate,
        pad=dataset.pad,
        device=card(run.plan.steps.load.device),  # batches are made in a thread of their own
        max_length=run.plan.steps.pack.max_length,
        media=dataset.media,
        others=dataset.train,
        padding_free=padding_free,
        bounds=_takes_bounds(run.plan),
        reference=reference,
    )


def _takes_bounds(plan: Plan) -> bool:
    """Return whether the attention reads cumulative lengths on the device; code of a model may not know flash's."""
    attention = plan.steps.patch.attention
    return attention == VARLEN or (attention in LENGTHS_ON_DEVICE and not plan.settings.model.trust_remote_code)


def feed(
    run: Run,
    dataset: Dataset,
    first: int,
    last: int,
    position: dict[str, Any] | None = None,
    reference: Of | None = None,
) -> Iterator[batches.Step]:
    """The optimizer steps from `first` up to `last`; of a stream, those from its position on.

    Each with this rank's share of its micro-batches, counted for itself: `of_all` adds up what the ranks have.
    """
    stage, seed = run.plan.settings.stage, run.plan.settings.seed
    collate = collating(run, dataset, reference, padding_free=run.plan.steps.pack.padding_free)
    size, accumulation = stage.batch_size, micro_batches(run.plan.settings)
    if dataset.stream is None:
        share, sorts = run.world.share, not compares(run.plan)
        return batches.steps(dataset.train, size, accumulation, seed, first, last, collate, share, by_length=sorts)
    return dataset.stream.steps(
        size, accumulation, collate, None if position is None else stream.Position.from_json(position)
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step of the loop trains: the batches of its optimizer updates, most often of one.

    `watched` is what their source measured; `position` is where it goes on, as JSON.
    """

    updates: list[batches.Step]
    tokens: int
    position: dict[str, Any] | None = None
    watched: dict[str, float] = field(default_factory=dict)


@contextmanager
def turns(
    run: Run,
    model: Any,
    dataset: Dataset,
    reference: Of | None,
    reward: Any,
    first: int,
    last: int,
    position: dict[str, Any] | None,
) -> Iterator[Iterator[Turn]]:
    """The steps from `first` up to `last`: of the stage's own source, or made ahead of the data's batches."""
    stage = registry.run("stages", run.plan.settings.stage.name)
    if source := registry.hook(stage, "source"):
        yield source(run, model, dataset, reward, first, last, position)
        return
    with batches.Prefetcher(feed(run, dataset, first, last, position, reference)) as steps:
        yield (
            Turn([step], step.tokens, step.position.as_json() if isinstance(step, stream.Step) else None)
            for step in map(partial(of_all, run), steps)
        )


def of_all(run: Run, step: batches.Step) -> batches.Step:
    """The rank's share of a step with the counts of the whole."""
    if run.world.size == 1:
        return step
    tokens, trained, samples = run.world.sums(step.tokens, step.trained, step.samples)
    return replace(step, tokens=int(tokens), trained=trained, samples=int(samples))
