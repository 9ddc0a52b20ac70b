"""What a table of runs shows of each: a column's name, its value, how it is written, what is better."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from factory.compare.runs import Run
from factory.config.words import rate, size
from factory.evaluation import rows
from factory.metrics import ROUGE

Better = Literal["low", "high"]
_BEFORE = "_before"
_LONG = 1e12


@dataclass(frozen=True, slots=True)
class Column:
    """`keep`: where the room does not do, columns with the least go first. `better` is None where neither is."""

    key: str
    title: str
    value: Callable[[Run], float | None]
    written: Callable[[float], str]
    keep: int
    better: Better | None = None

    def text(self, run: Run) -> str:
        number = self.value(run)
        return "-" if number is None else self.written(number)


def columns(runs: Iterable[Run]) -> list[Column]:
    """Those that at least one of the runs has a value for."""
    runs = list(runs)
    found = [*_TAKEN, *_measured(runs)]
    return [column for column in found if any(column.value(run) is not None for run in runs)]


def _of(*path: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found: Any = run.report
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return float(found) if _is_number(found) else None

    return value


def _mean_of(*names: str) -> Callable[[Run], float | None]:
    """Of scores that are all there (the paper's table 5 has the mean of the three ROUGEs)."""

    def value(run: Run) -> float | None:
        found = [_of("evaluate", name)(run) for name in names]
        known = [number for number in found if number is not None]
        return sum(known) / len(names) if len(known) == len(names) else None

    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _seconds(number: float) -> str:
    return f"{number:.1f}" if number < 10 else _count(number)


def decimals(number: float, sign: str = "") -> str:
    """Three of them, or where hundreds of digits would stand before them the power of ten. `sign`: "+" shows it."""
    return f"{number:{sign},.3f}" if abs(number) < _LONG else f"{number:{sign}.3e}"


PEAK = Column("peak_bytes", "memory", _of("memory", "peak_bytes"), size, 8)
PERPLEXITY = Column("perplexity", "perplexity", _of("evaluate", "perplexity"), decimals, 10, "low")
_TAKEN = (
    Column("parameters", "parameters", _of("parameters", "total"), _count, 1),
    Column("trainable", "trainable", _of("parameters", "trainable"), _count, 6),
    PEAK,
    Column("tokens_per_second", "tokens/s", _of("train", "tokens_per_second"), rate, 7),
    Column("seconds", "seconds", _of("train", "seconds"), _seconds, 3),
    Column("final_loss", "last loss", _of("train", "final_loss"), decimals, 2),
)
# what is measured: better where, and how long it is kept; others are neither better nor kept
_MEASURES: dict[str, tuple[Better | None, int]] = {
    "perplexity": ("low", 10),
    "loss": ("low", 9),
    "reward": ("high", 9),
    "rewards/accuracy": ("high", 9),
    "rewards/margin": ("high", 5),
    "bleu4": ("high", 9),
    "rouge1": ("high", 9),
    "rouge2": ("high", 8),
    "rougeL": ("high", 9),
    "exact_match": ("high", 8),
}
_ACCURACY: tuple[Better | None, int] = ("high", 9)  # of a benchmark
_OTHER: tuple[Better | None, int] = (None, 4)


def _measured(runs: list[Run]) -> Iterator[Column]:
    """The numbers of the reports' `evaluate`, before where they are there, and after; benchmarks by their accuracy.

    Of lm-evaluation-harness the tasks that stand in no group, and the groups.
    """
    told = [run.report.get("evaluate", {}) for run in runs]
    names = dict.fromkeys(name for each in told for name, value in each.items() if _is_number(value))
    for name in dict.fromkeys(name.removesuffix(_BEFORE) for name in names):
        better, keep = _MEASURES.get(name, _OTHER)
        yield Column(name + _BEFORE, f"{name} before", _of("evaluate", name + _BEFORE), decimals, keep - 5)
        yield Column(name, name, _of("evaluate", name), decimals, keep, better)
    yield Column(rows.ROUGE_MEAN, "ROUGE", _mean_of(*ROUGE), decimals, 9, "high")
    better, keep = _ACCURACY
    for name in dict.fromkeys(name for each in told for name in each.get("benchmarks", {})):
        yield Column(name, name, _of("evaluate", "benchmarks", name, "accuracy"), decimals, keep, better)
    for task, metric, better in dict.fromkeys(
        (task, metric, figure["better"])
        for each in told
        for task, found in each.get("harness", {}).items()
        if found["group"] is None
        for metric, figure in found["metrics"].items()
    ):
        name, value = f"{task}/{metric}", _of("evaluate", "harness", task, "metrics", metric, "value")
        yield Column(name, name, value, decimals, keep, better)
