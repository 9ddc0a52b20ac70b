"""The proof that what stands in one row sees nothing beside it: packed documents, rows, answers to one prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from factory import registry
from factory.data import batches
from factory.data.dataset import Example, Pair, alone, joined
from factory.estimate.speed import precision
from factory.execute.context import Run
from factory.heads import writes
from factory.plan import Steps
from factory.steps.feed import autocast, collating
from factory.steps.kernels import rounded_by_row, without_dropout
from factory.steps.pack import Dataset

_MEAN_ROUNDING = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.01}  # nats that a sequence's mean loss may differ by
_SLOPE_ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}  # of a gradient's norm
_LOOKED = 20  # sequences among which one of several documents is sought
_ENOUGH = 3  # documents, rows or prompts that are compared: one has a neighbour on each side. More only takes longer

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Compared:
    """Batches as they are trained and of each of their parts; their losses are divided by `count`."""

    together: Batch
    apart: list[Batch]
    count: float
    what: str


def check_isolation(run: Run, model: Any, dataset: Dataset) -> None:
    """The loss and the gradients of what shares a row are those of its parts, each alone."""
    plan = run.plan.steps
    found = _answers(run, dataset) if _are_pairs(dataset) else _documents(run, dataset)
    if found is None:  # each row is one document: nothing can leak
        return
    figure = _own if not _are_pairs(dataset) else _surprise if writes(plan.train.stage) else _score

    def slope(batch: Batch, sign: int) -> float:
        """The batch's part of the mean loss; its gradient is added, times the sign."""
        with autocast(run.plan):
            loss = run.way.call(lambda: figure(run, model, batch)) / found.count
        (sign * loss).backward()
        return float(loss.detach())

    without_dropout(model)
    with rounded_by_row(model):
        together, whole = slope(found.together, 1), _gradient_norm(model)
        apart = sum(slope(part, -1) for part in found.apart)
    left = _gradient_norm(model) / whole if whole else 0.0
    model.zero_grad()
    kind = precision(plan)
    of, allowed = "loss", _MEAN_ROUNDING[kind]
    if figure is _score:  # a number without a unit, of large ones' differences
        of, allowed = "score", _SLOPE_ROUNDING[kind] * max(1.0, abs(apart))
    run.check(
        "packing_isolation",
        abs(together - apart) <= allowed and left <= _SLOPE_ROUNDING[kind],
        f"{found.what} have a mean {of} of {together:.4f} packed and {apart:.4f} alone; "
        f"their gradients differ by {100 * left:.2g} %",
    )


def _own(run: Run, model: Any, batch: Batch) -> Any:
    plan = run.plan.steps.train
    return registry.run("stages", plan.stage).loss(model, batch, plan.own).total


def _surprise(_run: Run, model: Any, batch: Batch) -> Any:
    """Of each answer's tokens: a loss that compares answers may be flat where the model begins."""
    from factory.losses import sequence_log_probs

    return -sequence_log_probs(model, batch)[0].sum()


def _score(run: Run, model: Any, batch: Batch) -> Any:
    """Of each answer: what two have in common goes out of their difference, and bfloat16's rounding stays."""
    return registry.run("stages", run.plan.steps.train.stage).scores(model, batch).sum()


def _are_pairs(dataset: Dataset) -> bool:
    return dataset.stream is None and len(dataset.train) > 0 and isinstance(dataset.train[0], Pair)


def _answers(run: Run, dataset: Dataset) -> _Compared:
    size = min(run.plan.steps.train.batch_size, len(dataset.train), _ENOUGH)
    pairs: list[Any] = [dataset.train[number] for number in range(size)]
    apart = collating(run, dataset)
    sides = [side for pair in pairs for side in batches.examples(pair)]
    count = sum(side.trained for side in sides) if writes(run.plan.steps.train.stage) else len(sides)
    together = collating(run, dataset, padding_free=True)(pairs)
    return _Compared(together, [apart([pair]) for pair in pairs], count, f"{2 * size} answers to {size} prompts")


def _documents(run: Run, dataset: Dataset) -> _Compared | None:
    packed = _several_documents(run.plan.steps, dataset)
    if packed is None:
        return None
    device = run.plan.steps.load.device
    together, *apart = (batches.collate([found], dataset.pad, device) for found in (packed, *alone(packed)))
    return _Compared(together, apart, packed.trained, f"{len(packed.documents)} documents")


def _several_documents(plan: Steps, dataset: Dataset) -> Example | None:
    """The first of what shares a sequence, as it is trained."""
    sequences = _first_sequences(dataset)
    if plan.pack.padding_free:
        rows = list(islice(sequences, min(plan.train.batch_size, _ENOUGH)))
    else:
        rows = next((alone(found)[:_ENOUGH] for found in sequences if len(found.documents) > 1), [])
    return joined(rows) if len(rows) > 1 else None


def _gradient_norm(model: Any) -> float:
    import torch

    norms = [each.grad.detach().float().norm() for each in model.parameters() if each.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _first_sequences(dataset: Dataset) -> Iterator[Example]:
    if dataset.stream is not None:
        yield dataset.first
    for number in range(min(_LOOKED, len(dataset.train))):
        yield from batches.examples(dataset.train[number])
