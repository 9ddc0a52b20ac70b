"""What became of every row and every token, from the files to the optimizer: the check `tokens_accounted`."""

from collections.abc import Mapping
from typing import Any

from factory import schedules
from factory.data.batches import order
from factory.data.dataset import Dataset as Rows
from factory.execute.context import Run
from factory.stages.rows import rows_per_step, samples_answers
from factory.steps.pack import Dataset, rows_accounted


def check_tokens(run: Run, dataset: Dataset, counts: Mapping[str, Any], steps: int, tokens: int) -> None:
    """After training: `counts` is the report's `data`, `tokens` what the loop counted in so many steps."""
    rows, detail = rows_accounted(counts)
    planned = tokens_planned(run, dataset, steps)
    if planned is not None:
        detail += f"; {tokens:,} tokens went through the steps, {planned:,} by the data and its order"
    run.check("tokens_accounted", rows and planned in (None, tokens), detail)


def tokens_planned(run: Run, dataset: Dataset, steps: int) -> int | None:
    """Tokens of the sequences of so many steps, by the order of each epoch, without reading them.

    None where they are not known beforehand: of a stream, and of answers that are sampled.
    """
    plan = run.plan
    if not isinstance(dataset.train, Rows) or samples_answers(plan):
        return None
    lengths, size = dataset.train.lengths, rows_per_step(plan)
    epochs, rest = divmod(steps, schedules.steps_per_epoch(len(lengths), size, 1))
    return epochs * int(lengths.sum()) + int(
        lengths[order(len(lengths), run.plan.settings.seed, epochs)[: rest * size]].sum()
    )
