"""What an evaluation measured of each row, in `evaluation/*.jsonl` of a run's folder: what two runs are compared by.

A line is a row: {"id": …, "scores": {name: number}, …}. A metric that is no mean of its rows' scores has in `sums` what
each row adds to the sums that it is a function of. No torch.

| file | ids | scores |
|---|---|---|
| perplexity.jsonl, perplexity_before.jsonl | source:row | nats and tokens, whose sums make the perplexity |
| generation.jsonl | source:row | bleu4, rouge1, rouge2, rougeL, exact_match, the user's own |
| harness.jsonl | task:number | TASK/METRIC of lm-evaluation-harness, where it is a mean and more is better |
| mmlu.jsonl, cmmlu.jsonl, ceval.jsonl | subject:number | 100 where it is right, else 0, by the benchmark's name |
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf
from pathlib import Path
from typing import Any

import numpy as np

from factory.benchmarks.result import MEANS, by_subject
from factory.benchmarks.types import NAMES as BENCHMARKS
from factory.benchmarks.types import benchmark
from factory.data.dataset import Dataset, Samples
from factory.metrics import ROUGE, bootstrap
from factory.metrics.text import Statistics, bleu4_of, mean_of
from factory.run.folder import RunFolder, unwritable, write_whole

Row = dict[str, Any]
PERPLEXITY, PERPLEXITY_BEFORE, GENERATION = "perplexity", "perplexity_before", "generation"
HARNESS = "harness"
ROUGE_MEAN = "rouge"  # of the three, as in the paper's Table 5
LOWER_IS_BETTER = frozenset({PERPLEXITY, PERPLEXITY_BEFORE})


def perplexity(loss: float) -> float:
    """exp of the mean loss, in nats a token; infinity where no number is as large: of a model that has diverged."""
    try:
        return exp(loss)
    except OverflowError:
        return inf


def perplexity_of(sums: Statistics) -> float:
    """Of (nats, tokens)."""
    return perplexity(sums[0] / sums[1])


# metrics that are no mean of their rows' scores, and the file that holds their rows
_OF: dict[str, Callable[[Statistics], float]] = {
    PERPLEXITY: perplexity_of,
    PERPLEXITY_BEFORE: perplexity_of,
    "bleu4": bleu4_of,
    **{name: MEANS[benchmark(name).average] for name in BENCHMARKS},
}


def read(file: Path) -> list[Row]:
    """The rows of a file, none where it is not there; a last line that a kill cut short is left out."""
    if not file.is_file():
        return []
    *whole, _ = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def write(file: Path, rows: list[Row]) -> None:
    """Raises UserError where it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(file.parent, error) from None
    write_whole(file, _lines(rows))


def _lines(rows: list[Row]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n" for row in rows)


def append(file: Path, rows: list[Row]) -> None:
    """All in one write, so that a kill leaves none of them or a last one that `read` leaves out. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as opened:
            opened.write(_lines(rows).encode())
    except OSError as error:
        raise unwritable(file, error) from None


def ids(samples: Samples) -> list[str]:
    """What identifies each in another run on the same data: source:row, or of a stream's held-out rows their number."""
    if not isinstance(samples, Dataset):
        return [f"held out:{number}" for number in range(len(samples))]
    return [f"{source}:{row}" for (source, row, _), *_ in map(samples.pieces, range(len(samples)))]


_CHANCE = 0.05  # of intervals that hold a difference 95 times of 100


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric of the second run less that of the first, over the `rows` that both have measured."""

    difference: bootstrap.Difference
    rows: int
    lower_is_better: bool

    @property
    def few(self) -> bool:
        """Whether any interval is of too few rows: by chance all point the same way once in 2^(rows - 1) times."""
        return 2.0 ** (1 - self.rows) > _CHANCE

    @property
    def better(self) -> bool | None:
        """Whether the second run is; None where the interval holds 0 or the rows are few, so that nobody can say."""
        if not self.difference.sure or self.few:
            return None
        return (self.difference.value < 0) == self.lower_is_better


def compared(first: Path | str, second: Path | str, *, samples: int = 1000, seed: int = 0) -> dict[str, Compared]:
    """{metric: what two runs' folders differ by}, with 95 % intervals by the paired bootstrap (`metrics.bootstrap`).

    Rows are paired by their ids. Metrics that only one of them has, or of no common row, are left out.
    """
    mine, theirs = measures(first), measures(second)
    found: dict[str, Compared] = {}
    for metric in (name for name in mine if name in theirs):
        ids = [row for row in mine[metric] if row in theirs[metric]]
        if not ids:
            continue
        one, other = (_stacked(metric, ids, [sums[row] for row in ids]) for sums in (mine[metric], theirs[metric]))
        difference = bootstrap.difference(one, other, _OF.get(metric, mean_of), samples=samples, seed=seed)
        found[metric] = Compared(difference, len(ids), metric in LOWER_IS_BETTER)
    return found


def measures(run: Path | str) -> dict[str, dict[str, tuple[float, ...]]]:
    """{metric: {row: what it adds to the sums that the metric is a function of}} of a run's folder."""
    folder, found = RunFolder(run).evaluation, dict[str, dict[str, tuple[float, ...]]]()
    for name in (PERPLEXITY, PERPLEXITY_BEFORE):
        if rows := read(folder / f"{name}.jsonl"):
            found[name] = {row["id"]: (row["scores"]["nats"], row["scores"]["tokens"]) for row in rows}
    for name in (GENERATION, HARNESS, *BENCHMARKS):
        for row in read(folder / f"{name}.jsonl"):
            key = _answered(row) if name == GENERATION else row["id"]
            for metric in row["scores"]:
                found.setdefault(metric, {})[key] = sums(row, metric)
            if row["scores"].keys() >= set(ROUGE):
                mean = sum(row["scores"][metric] for metric in ROUGE) / len(ROUGE)
                found.setdefault(ROUGE_MEAN, {})[key] = (mean, 1.0)
    return found


def _answered(row: Row) -> str:
    """A row with its reference: where that was cut, or rendered otherwise, an answer is scored against another."""
    return f"{row['id']} {row.get('reference', '')}"


def sums(row: Row, metric: str) -> tuple[float, ...]:
    """What a row adds to the sums that the metric is a function of."""
    return tuple(row.get("sums", {}).get(metric, (row["scores"][metric], 1.0)))


def value(metric: str, by_row: dict[str, tuple[float, ...]]) -> float:
    """The metric over these rows, as `measures` has them."""
    stacked = _stacked(metric, list(by_row), list(by_row.values()))
    return _OF.get(metric, mean_of)(stacked.sum(0))


def _stacked(metric: str, ids: list[str], sums: list[tuple[float, ...]]) -> Statistics:
    """(rows, k). Of a benchmark each subject has sums of its own."""
    if metric in BENCHMARKS:
        return by_subject([row.rpartition(":")[0] for row in ids], [score for score, _ in sums])
    return np.array(sums, np.float64)
