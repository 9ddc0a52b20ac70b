"""The comparison itself, as values: what the terminal, the files and the page are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from factory import diff
from factory.compare.columns import Column, columns
from factory.compare.judged import Judge, Verdict, listed
from factory.compare.labels import labels as labels_of
from factory.compare.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`labels` are what was asked of a run and not of all; `names` are the labels where each run has one of its own.

    `verdicts` are by a column's key, `spreads` is None without two plans. `notes` are what a reader of the table must
    know, in sentences.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    verdicts: dict[str, Verdict]
    spreads: diff.Spreads | None
    planned: tuple[int, ...]  # the runs that have a plan, as `spreads` orders them
    notes: tuple[str, ...]

    def best(self, column: Column, place: int) -> bool:
        found = self.verdicts.get(column.key)
        return found is not None and found.best == place

    @property
    def all_finished(self) -> bool:
        return all(run.status == "finished" for run in self.runs)


def compared(runs: Sequence[Run]) -> Comparison:
    labels = labels_of([run.options for run in runs], [run.overrides for run in runs])
    names = _names(runs, labels)
    called = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    found, judge = columns(runs), Judge(called)
    verdicts = {column.key: made for column in found if (made := judge.verdict(column)) is not None}
    planned = [place for place, run in enumerate(runs) if run.plan is not None]
    plans = [plan for run in runs if (plan := run.plan) is not None]
    return Comparison(
        runs=tuple(runs),
        names=names,
        labels=labels,
        columns=tuple(found),
        verdicts=verdicts,
        spreads=diff.among(plans) if len(plans) > 1 else None,
        planned=tuple(planned),
        notes=tuple(_notes(called, found, verdicts, judge)),
    )


def _names(runs: Sequence[Run], labels: Sequence[str]) -> tuple[str, ...]:
    """The labels where each run that is known has one of its own, else the folders' names."""
    known = [label for run, label in zip(runs, labels, strict=True) if run.options or run.overrides]
    unlike = all(known) and len(set(known)) == len(known)
    return tuple(label if unlike and label else run.name for run, label in zip(runs, labels, strict=True))


def _notes(runs: Sequence[Run], found: Sequence[Column], verdicts: dict[str, Verdict], judge: Judge) -> list[str]:
    notes = [f"{run.name}, {run.status}: {run.said}." for run in runs if run.said]
    notes += [f"{runs[place].name}: {why}." for place, why in judge.unread.items()]
    titles = {column.key: column.title for column in found}
    for key, verdict in verdicts.items():
        if verdict.why is not None:
            notes.append(f"No best {titles[key]}: {verdict.why}.")
    if any(verdict.best is not None for verdict in verdicts.values()):
        notes.append(
            "Best (*): against each other run, the 95 % interval of the difference (paired bootstrap over the rows "
            "that both have measured) leaves out 0."
        )
    if taken := [column.title for column in found if column.key in ("peak_bytes", "tokens_per_second", "seconds")]:
        notes.append(f"{listed(taken).capitalize()} were measured once each: no best is claimed.")
    notes += _machines(runs)
    return notes


def _machines(runs: Sequence[Run]) -> list[str]:
    devices = {run.plan.steps.load.device for run in runs if run.plan}
    threads = {run.plan.steps.train.threads for run in runs if run.plan}
    unlike = [
        *([f"on different devices ({', '.join(sorted(devices))})"] if len(devices) > 1 else []),
        *([f"with different numbers of threads ({', '.join(map(str, sorted(threads)))})"] if len(threads) > 1 else []),
    ]
    return [f"The runs went {' and '.join(unlike)}: their speed and memory are no comparison."] if unlike else []
