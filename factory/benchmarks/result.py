"""What a model scored: by subject, by category, over all; and what `factory.metrics.bootstrap` compares runs by."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np

from factory.benchmarks.types import LETTERS, Average, Benchmark, benchmark
from factory.metrics.text import Statistics


@dataclass(frozen=True, slots=True)
class Score:
    """Of one subject. Accuracies are from 0 to 100; by chance 25 of four choices."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        return 100 * self.right / self.count

    @property
    def variance(self) -> float:
        """Of the accuracy, by the sample's own of independent questions: s² / n = p (1 - p) / (n - 1).

        As lm-evaluation-harness takes it (`mean_stderr`). One question tells none, and counts as 0.
        """
        share = self.right / self.count
        return 100**2 * share * (1 - share) / max(1, self.count - 1)


@dataclass(frozen=True, slots=True)
class Mean:
    """Of several subjects: `macro` weighs each of them alike, `micro` each question."""

    macro: float
    macro_error: float  # standard errors
    micro: float
    micro_error: float
    subjects: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question's answer. `number`: its row in its subject's file, from 1. `given`: None where it did not fit."""

    subject: str
    number: int
    text: str
    answer: str
    given: str | None
    log_probs: tuple[float, ...] | None  # of A, B, C and D
    shots: int

    @property
    def right(self) -> bool:
        return self.given == self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`rows` in the order of subjects and questions: those of two runs on the same questions stand side by side.

    A question that does not fit into the context counts as answered wrongly. `digest` is the exam's, the other fields
    are those of `Exam` and `score.Answers`.
    """

    name: str
    source: str
    digest: str
    shots: int
    chat: bool
    rows: tuple[Row, ...]
    dropped: dict[str, dict[str, int | list[str]]]
    absent: tuple[str, ...]
    not_sampled: int
    reading: Literal["shared", "whole", "alone"] | None
    apart: float | None

    @property
    def benchmark(self) -> Benchmark:
        return benchmark(self.name)

    @property
    def subjects(self) -> dict[str, Score]:
        count, right = Counter(row.subject for row in self.rows), Counter(row.subject for row in self.rows if row.right)
        return {subject: Score(right[subject], count[subject]) for subject in self.benchmark.subjects if count[subject]}

    @property
    def categories(self) -> dict[str, Mean]:
        """Those of which a subject was asked."""
        scores = self.subjects
        found = {
            category: [scores[subject] for subject in subjects if subject in scores]
            for category, subjects in self.benchmark.categories.items()
        }
        return {category: mean(each) for category, each in found.items() if each}

    @property
    def overall(self) -> Mean:
        return mean(self.subjects.values())

    @property
    def accuracy(self) -> float:
        """The mean that the benchmark's authors report."""
        return getattr(self.overall, self.benchmark.average)

    @property
    def signature(self) -> str:
        """What two figures must share to be comparable: the questions themselves by their hash."""
        made, asked = self.benchmark, len(self.rows)
        kind = "conversation" if self.chat else "plain text"
        there = f"{asked:,} questions of {len(self.subjects)} subjects"
        return f"{made.title}, {self.shots}-shot, {kind}, {there}, by logits, {self.digest[:8]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know, in sentences."""
        made, asked = self.benchmark, len(self.rows)
        unread = sum(row.given is None for row in self.rows)
        fewer = sum(row.given is not None and row.shots < self.shots for row in self.rows)
        broken = sum(count for entry in self.dropped.values() if isinstance(count := entry["count"], int))
        there = len(made.subjects) - len(self.absent)
        said = {
            f"{made.title}: {there} of {len(made.subjects)} subjects are in {self.source}.": self.absent,
            f"{made.title}: {self.not_sampled:,} questions are left out by max_samples.": self.not_sampled,
            f"{made.title}: {broken:,} broken rows are left out: {', '.join(self.dropped)}.": broken,
            f"{made.title}: {fewer:,} of {asked:,} questions have fewer than {self.shots} shots before them, "
            "as the context is too short; the first ones are left out.": fewer,
            f"{made.title}: {unread:,} questions do not fit into the context and count as wrong.": unread,
            f"{made.title}: each prompt was read whole, as a shared start changes this model's answers.": (
                self.reading == "whole"
            ),
            f"{made.title}: each prompt was read alone, as padding changes this model's answers.": (
                self.reading == "alone"
            ),
        }
        return tuple(text for text, true in said.items() if true)

    def to_tree(self) -> dict[str, Any]:
        """For a report: plain values, without the rows."""
        return {
            "title": self.benchmark.title,
            "source": self.source,
            "signature": self.signature,
            "average": self.benchmark.average,
            "accuracy": self.accuracy,
            "questions": len(self.rows),
            "shots": self.shots,
            "overall": asdict(self.overall),
            "categories": {name: asdict(each) for name, each in self.categories.items()},
            "subjects": {
                name: {"accuracy": each.accuracy, "right": each.right, "count": each.count}
                for name, each in self.subjects.items()
            },
            "dropped": self.dropped,
            "absent": list(self.absent),
            "not_sampled": self.not_sampled,
            "reading": self.reading,
            "apart": self.apart,
            "notes": list(self.notes),
        }

    def row_trees(self) -> list[dict[str, Any]]:
        """For a file: a line a question, as `evaluation.rows` has it."""
        return [
            {
                "id": f"{row.subject}:{row.number}",
                "scores": {self.name: 100.0 * row.right},
                "question": row.text,
                "subject": row.subject,
                "number": row.number,
                "answer": row.answer,
                "given": row.given,
                "right": row.right,
                "shots": row.shots,
                "log_probs": None if row.log_probs is None else dict(zip(LETTERS, row.log_probs, strict=True)),
            }
            for row in self.rows
        ]


def mean(scores: Iterable[Score]) -> Mean:
    """Standard errors of independent questions: of the macro mean sqrt(sum of the subjects' variances) / subjects."""
    scores = list(scores)
    together = Score(sum(each.right for each in scores), sum(each.count for each in scores))
    return Mean(
        macro=sum(each.accuracy for each in scores) / len(scores),
        macro_error=sqrt(sum(each.variance for each in scores)) / len(scores),
        micro=together.accuracy,
        micro_error=sqrt(together.variance),
        subjects=len(scores),
        count=together.count,
    )


def choice(log_probs: Sequence[float] | None) -> str | None:
    """The likeliest letter; of equal ones the first, as the benchmarks' own code has it."""
    return None if log_probs is None else LETTERS[int(np.argmax(log_probs))]


def by_subject(subjects: Sequence[str], scores: Sequence[float]) -> Statistics:
    """(rows, 2 x subjects): each row's score and a 1, at the place of its subject. What MEANS are functions of."""
    places = {subject: place for place, subject in enumerate(dict.fromkeys(subjects))}
    statistics = np.zeros((len(scores), len(places), 2))
    for row, (subject, score) in enumerate(zip(subjects, scores, strict=True)):
        statistics[row, places[subject]] = score, 1
    return statistics.reshape(len(scores), -1)


def _micro(sums: Statistics) -> float:
    total, count = sums.reshape(-1, 2).sum(0)
    return float(total / count)


def _macro(sums: Statistics) -> float:
    """A draw of rows may hold none of a subject: the mean is over those that it holds."""
    total, count = sums.reshape(-1, 2)[sums.reshape(-1, 2)[:, 1] > 0].T
    return float((total / count).mean())


MEANS: dict[Average, Callable[[Statistics], float]] = {"micro": _micro, "macro": _macro}
