"""The proof that what stands in one row sees nothing beside it: packed documents, rows, answers to one prompt."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from factory.config import registry
from factory.data import batches
from factory.data.dataset import Example, alone
from factory.estimate.speed import precision
from factory.execute.context import Run
from factory.plan.heads import writes
from factory.steps.feed import autocast, collating
from factory.steps.kernels import rounded_by_row, whole_float32, without_dropout
from factory.steps.pack import Dataset

_MEAN_ROUNDING = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.01}  # nats that a sequence's mean loss may differ by
_SLOPE_ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}  # of a gradient's norm
_LOOKED = 20  # sequences among which one of several documents is sought
_ENOUGH = 3  # rows that are compared: one has a neighbour on each side. More only takes longer

Batch = dict[str, Any]


def check_isolation(run: Run, model: Any, dataset: Dataset) -> None:
    """Report whether the loss and the gradients of what shares a row are those of its parts, each in its own row."""
    import torch

    plan, together = run.plan.steps, _sharing(run, dataset)
    if together is None:  # each row is one document: nothing can leak
        return
    samples, parts = together
    reads_scores = not writes(run.plan.settings.stage.name)
    count = len(parts) if reads_scores else sum(part.trained for part in parts)
    if not count:
        return
    figure = _score if reads_scores else _surprise

    def slope(batch: Batch, sign: int) -> float:
        """Add the gradient of the batch's part of the mean loss, times the sign, and return that part."""
        with autocast(run.plan), torch.set_grad_enabled(run.way.differentiates):
            loss = run.way.call(lambda: figure(run, model, batch)) / count
        if run.way.differentiates:
            (sign * loss).backward()
        return float(loss.detach())

    collate, alone_in_row = collating(run, dataset, padding_free=plan.pack.padding_free), collating(run, dataset)
    without_dropout(model)
    with rounded_by_row(model), whole_float32():
        packed, whole = slope(collate(samples), 1), _gradient_norm(model)
        apart = sum(slope(alone_in_row([part]), -1) for part in parts)
    left = _gradient_norm(model) / whole if whole else 0.0
    model.zero_grad()
    kind = precision(run.plan)
    of, allowed = "loss", _MEAN_ROUNDING[kind]
    if reads_scores:  # a number without a unit, of large ones' differences
        of, allowed = "score", _SLOPE_ROUNDING[kind] * max(1.0, abs(apart))
    run.check(
        "packing_isolation",
        abs(packed - apart) <= allowed and left <= _SLOPE_ROUNDING[kind],
        f"{len(parts)} documents have a mean {of} of {packed:.4f} in one row and {apart:.4f} each in its own"
        + (f"; their gradients differ by {100 * left:.2g} %" if run.way.differentiates else ""),
    )


def _surprise(_run: Run, model: Any, batch: Batch) -> Any:
    """Of all trained tokens: a loss that compares answers may be flat where the model begins."""
    from factory.losses import sequence_log_probs

    return -sequence_log_probs(model, batch)[0].sum()


def _score(run: Run, model: Any, batch: Batch) -> Any:
    """Of each answer: what two have in common goes out of their difference, and bfloat16's rounding stays."""
    return registry.run("stages", run.plan.settings.stage.name).scores(model, batch).sum()


def _sharing(run: Run, dataset: Dataset) -> tuple[list[Example], list[Example]] | None:
    """Return the first sequences that share a row, as they are trained, and each of their documents.

    Of packed rows that is the first with several documents, else the first rows of a micro-batch.
    """
    plan = run.plan.steps
    if plan.pack.packing:
        packed = next((found for found in _first_sequences(dataset) if len(found.documents) > 1), None)
        return None if packed is None else ([packed], alone(packed))
    size = run.plan.settings.stage.batch_size * len(batches.examples(dataset.train[0])) if dataset.stream is None else 1
    rows = list(islice(_first_sequences(dataset), min(size, _ENOUGH)))
    return (rows, rows) if len(rows) > 1 else None


def _gradient_norm(model: Any) -> float:
    import torch

    norms = [each.grad.detach().float().norm() for each in model.parameters() if each.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _first_sequences(dataset: Dataset) -> Iterator[Example]:
    if dataset.stream is not None:
        yield dataset.first
        return
    for number in range(min(_LOOKED, len(dataset.train))):
        yield from batches.examples(dataset.train[number])
