"""What a benchmark is made of, as its YAML file says it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from factory.config.parsed import yaml_of
from factory.config.values import record

LETTERS = ("A", "B", "C", "D")
Average = Literal["micro", "macro"]  # over questions, over subjects
_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != "refusals"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The published layout: where a subject's shots and its scored questions lie. `columns` of None: a header's."""

    shots: str
    scored: str
    columns: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where it lies on the Hugging Face hub. `subset` of None: each subject is one. `archive`: a zip of the layout."""

    path: str
    subset: str | None
    archive: str | None
    shots: str
    scored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """`average`: the mean that its authors report. A subject may be in several categories."""

    title: str
    average: Average
    header: str
    question: str
    choice: str
    cue: str
    answer: str
    end: str
    files: Files
    hub: Hub
    names: dict[str, str] | None
    categories: dict[str, tuple[str, ...]]

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(subject for subjects in self.categories.values() for subject in subjects))

    def name_of(self, subject: str) -> str:
        """What a prompt calls it."""
        return subject.replace("_", " ") if self.names is None else self.names[subject]


@cache
def benchmark(name: str) -> Benchmark:
    """One of NAMES."""
    tree = yaml_of((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    made = record(Benchmark, tree)
    assert made.names is None or set(made.names) == set(made.subjects), name
    return made


@dataclass(frozen=True, slots=True)
class Question:
    """`number`: its row in its subject's file, from 1. `answer` is one of LETTERS."""

    subject: str
    number: int
    text: str
    choices: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What is asked of a model. `shots`: by subject. `dropped`: broken rows, {reason: {count, first}}.

    `absent`: subjects of the benchmark that the source does not hold; `not_sampled`: questions beyond `max_samples`.
    """

    name: str
    source: str
    shots: dict[str, tuple[Question, ...]]
    questions: tuple[Question, ...]
    dropped: dict[str, dict[str, int | list[str]]]
    absent: tuple[str, ...]
    not_sampled: int

    @property
    def benchmark(self) -> Benchmark:
        return benchmark(self.name)

    @property
    def shots_each(self) -> int:
        """Solved questions before each: as many for every subject."""
        return max(map(len, self.shots.values()), default=0)

    def digest(self) -> str:
        """A hash of what is asked, shots and answers included."""
        asked = (
            self.name,
            [*map(asdict, self.questions)],
            {name: [*map(asdict, each)] for name, each in self.shots.items()},
        )
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
