"""The steps of a stage that samples: which rows are asked, the updates of a rolled batch, and what is measured."""

from typing import Any

import torch
from torch import Tensor

from factory.config.refusal import refuse
from factory.data import batches
from factory.data.dataset import TRAINED_AT, Example
from factory.estimate.speed import precision
from factory.execute.context import Run
from factory.losses import sampled_log_probs
from factory.plan.plan import stage_keys
from factory.rewards import Reward
from factory.rollouts.rolled import Rolled, parts, roll
from factory.stages.loss import Watched
from factory.stages.rows import rows_per_step
from factory.steps.evaluate import TOKEN_ROUNDING
from factory.steps.feed import autocast, collating
from factory.steps.kernels import without_dropout
from factory.steps.pack import Dataset


def asked(run: Run, dataset: Dataset, step: int) -> list[Example]:
    """The rows whose prompts are answered in a step: a function of seed and epoch, as everywhere."""
    (rows,) = batches.micro_batches(step, len(dataset.train), rows_per_step(run.plan), 1, run.plan.settings.seed)
    found = [batches.examples(dataset.train[row])[0] for row in rows]
    if any(each.media for each in found):  # of rows that no plan saw
        raise refuse(
            "rollout-data",
            "data.sources",
            "a row has images, videos or sounds",
            because="of the data the prompts are taken, and each is answered by the model",
            fix="leave the key at its default, and images, videos and sounds out of the rows",
        )
    return found


def updates(run: Run, dataset: Dataset, rolled: Rolled, columns: dict[str, Tensor]) -> list[batches.Step]:
    """The updates of all epochs, the answers in a new order each time, drawn from torch's global generator.

    `columns`, (n, ...) each, go along with the answers; those of tokens are (n, t), and `mask` says which are there.
    """
    stage = run.plan.settings.stage
    collate = collating(run, dataset, padding_free=run.plan.steps.pack.padding_free)
    columns = {"mask": rolled.mask, **columns}
    found = list[batches.Step]()
    for _ in range(stage_keys(run.plan)["update_epochs"]):
        order = torch.randperm(len(rolled.answers)).tolist()
        for rows in parts(order, stage.batch_size * stage.gradient_accumulation_steps):
            made = [
                collate([rolled.examples[row] for row in each])
                | {name: values[each] for name, values in columns.items()}
                for each in parts(rows, stage.batch_size)
            ]
            found.append(
                batches.Step(
                    made,
                    sum(len(rolled.examples[row].ids) for row in rows),
                    int(rolled.mask[rows].sum()),
                    len(rows),
                    tells=bool(columns["advantages"][rows].any()),
                )
            )
    return found


def tokens(rolled: Rolled) -> int:
    """Of prompts and answers, each once."""
    return sum(len(example.ids) for example in rolled.examples)


def text(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the model reads, and which tokens are trained."""
    own = ("input_ids", "labels", TRAINED_AT, *batches.JOINED, batches.STARTS, batches.LENGTHS, *batches.FLASH)
    return {name: batch[name] for name in own if name in batch}


def check_ratio(run: Run, model: Any, dataset: Dataset, rolled: Rolled) -> None:
    """Before the first update new and old probabilities are equal: else the loss would follow something not learnt."""
    if run.plan.settings.checks == "none":
        return
    rows = slice(0, run.plan.settings.stage.batch_size)
    batch = collating(run, dataset, padding_free=run.plan.steps.pack.padding_free)(rolled.examples[rows])
    without_dropout(model)
    with autocast(run.plan):
        again, _ = sampled_log_probs(model, batch, stage_keys(run.plan)["temperature"])
    apart = float((again.detach() - rolled.log_probs[rows][rolled.mask[rows]]).abs().max())
    allowed = TOKEN_ROUNDING[precision(run.plan)]
    run.check("ratio_is_one", apart <= allowed, f"before the first update a token's log-ratio is {apart:.2g} at most")


def measure(run: Run, model: Any, dataset: Dataset, reward: Reward, name: str) -> dict[str, float]:
    """Means over greedy answers to the held-out prompts: reward, KL to the reference, length, share that ended.

    The reward's is over those that have a score, and left out where none has.
    """
    rows = [batches.examples(dataset.validation[number])[0] for number in range(len(dataset.validation))]
    rows.sort(key=lambda row: row.prompt)
    found, done = Watched(), 0
    for part in parts(rows, run.plan.settings.evaluate.batch_size):
        run.stop_if_asked()
        rolled = roll(run, model, dataset, reward, part, greedy=True)
        counts = {"reward": rolled.scored()}
        means = {key: (value, counts.get(key, len(part))) for key, value in rolled.watched().items()}
        found.add({key: (value * count, count) for key, (value, count) in means.items()})
        done += len(part)
        run.progress(name, done, len(rows))
    return {key: value for key, value in found.means().items() if key != "entropy"}
