"""A sweep's folder: what it was to do, what it has done. `sweep` writes it, `compare` reads it."""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from factory.compare.runs import of_report
from factory.config import compose
from factory.config.values import to_tree
from factory.execute.__main__ import FAILED, FINISHED
from factory.execute.context import append
from factory.run.folder import RunFolder, read_json, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """`refused`: why it cannot work, in the words of the first refusal. `digest` is None where it has no plan."""

    name: str
    overrides: tuple[str, ...]
    digest: str | None
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`reused`: the folder of the run with the same plan whose result stands for this job's.

    `overrides` are those of a job that was run here.
    """

    code: int
    reused: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """sweep.json. `jobs` is empty where the sweeper decides them as it goes. `reuse`: whether that was asked."""

    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]
    parent_run: str | None
    jobs: tuple[Recorded, ...] = field(default=())
    reuse: bool = False


class SweepFolder:
    """The names of a sweep's files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.record = self.path / "sweep.json"
        self.outcomes = self.path / "jobs.jsonl"  # a line a job that ended, whichever process ran it
        self.hydra = self.path / "multirun.yaml"
        self.table = self.path / "table.md"
        self.page = self.path / "compare.html"

    def is_there(self) -> bool:
        """Not where the folder may not be entered, either: Path raises there."""
        return any(map(os.path.isfile, (self.record, self.outcomes, self.hydra)))

    def read(self) -> Record | None:
        """None where there is none that a sweep has written."""
        tree = read_json(self.record) or {}
        with suppress(KeyError, TypeError):
            return Record(
                overrides=tuple(tree["overrides"]),
                config_dirs=tuple(tree["config_dirs"]),
                parent_run=tree["parent_run"],
                jobs=tuple(Recorded(**{**job, "overrides": tuple(job["overrides"])}) for job in tree["jobs"]),
                reuse=bool(tree.get("reuse")),  # sweeps of older versions do not say it
            )
        return None

    def is_of_a_recipe(self) -> bool:
        """Whether its jobs are a recipe's runs. Raises UserError where the recipe is broken by now."""
        if (record := self.read()) is None:
            return False
        line = compose.CommandLine(overrides=record.overrides, config_dirs=record.config_dirs)
        return compose.recipe_of_runs(line) is not None

    def write(self, record: Record) -> None:
        write_whole(self.record, json.dumps(to_tree(record), indent=1, ensure_ascii=False) + "\n")

    def noted_place(self, run: str) -> str:
        """How jobs.jsonl names a run's folder: a job of this sweep by its name, since a sweep may be moved."""
        path = Path(run)
        return path.relative_to(self.path).as_posix() if path.is_relative_to(self.path) else str(path.absolute())

    def note(self, job: str, code: int, **more: Any) -> None:
        """How a job has ended just now. Raises UserError where it cannot be written."""
        append(self.outcomes, {"job": job, "code": code, **more, "time": time.time()})

    def ended(self) -> dict[str, Outcome]:
        """The last outcome of each job that ended: its last line, or the report of a run that finished after it."""
        if not self.outcomes.is_file():
            return {}
        lines = list[dict[str, Any]]()
        for text in self.outcomes.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # what a full disk cut short
                lines.append(json.loads(text))
        return {
            line["job"]: Outcome(
                code=self._code(line),
                reused=str(self.path / line["reused"]) if line.get("reused") else None,
                overrides=tuple(line.get("overrides", ())),
            )
            for line in lines
        }

    def _code(self, line: dict[str, Any]) -> int:
        """A job may have been continued by itself, past the sweep."""
        code, run = line["code"], RunFolder(self.path / line["job"])
        if code == FINISHED or line.get("reused"):
            return code
        with suppress(OSError):
            after = run.report.stat().st_mtime > line.get("time", inf)  # which lines of older versions lack
            return code_of(run) if after and run.status() == "finished" else code
        return code

    def is_done(self) -> bool:
        """Whether every job that is known ended well."""
        ended = self.ended()
        return bool(ended) and all(name in ended and ended[name].code == 0 for name in self.names())

    def names(self) -> list[str]:
        """Of all jobs that are known, in their order; those that no record lists by their numbers."""
        record = self.read()
        planned = [job.name for job in record.jobs] if record else []
        there = [path.parent.name for path in self.path.glob("*/plan.yaml")]
        others = sorted({*self.ended(), *there} - set(planned), key=lambda name: (len(name), name))
        return [*planned, *others]


def code_of(run: RunFolder) -> int:
    """What the run in this folder ended with, by its report."""
    return FINISHED if of_report(read_json(run.report) or {}) == "finished" else FAILED
