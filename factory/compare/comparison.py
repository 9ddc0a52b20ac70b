"""The comparison itself, as values: what the terminal, the files and the page are made from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from factory.compare.columns import Column, columns
from factory.compare.judged import Judge, Verdict, listed
from factory.compare.labels import labels as labels_of
from factory.compare.runs import Run
from factory.plan import diff


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`labels` are what was asked of a run and not of all, where its name does not tell.

    `names` are the labels where each run has one of its own. `verdicts` are by a column's key, one of each data set;
    `spreads` is None without two plans. `notes` are what a reader of the table must know, in sentences.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    verdicts: dict[str, tuple[Verdict, ...]]
    spreads: diff.Spreads | None
    planned: tuple[int, ...]  # the runs that have a plan, as `spreads` orders them
    notes: tuple[str, ...]

    def best(self, column: Column, place: int) -> bool:
        return any(found.best == place for found in self.verdicts.get(column.key, ()))

    def judged(self) -> Iterator[tuple[Column, Verdict]]:
        """Every verdict with intervals, column by column."""
        for column in self.columns:
            yield from ((column, verdict) for verdict in self.verdicts.get(column.key, ()) if verdict.others)

    @property
    def all_finished(self) -> bool:
        return all(run.status == "finished" for run in self.runs)


def compared(runs: Sequence[Run]) -> Comparison:
    alike = labels_of([run.options for run in runs], [run.overrides for run in runs])
    labels = tuple("" if run.told_by_name else label for run, label in zip(runs, alike, strict=True))
    names = _names(runs, labels)
    called = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    found, judge = columns(runs), Judge(called)
    verdicts = {column.key: made for column in found if (made := judge.verdicts(column))}
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


def _notes(
    runs: Sequence[Run], found: Sequence[Column], verdicts: dict[str, tuple[Verdict, ...]], judge: Judge
) -> list[str]:
    notes = [f"{run.name}, {run.status}: {run.said}." for run in runs if run.said]
    notes += [f"{runs[place].name}: {why}." for place, why in judge.unread.items()]
    titles = {column.key: column.title for column in found}
    every = [(titles[key], verdict) for key, each in verdicts.items() for verdict in each]
    notes += [f"No best {title}: {verdict.why}." for title, verdict in every if verdict.why is not None]
    if any(len(each) > 1 for each in verdicts.values()):
        notes.append("The best is sought among the runs on the same data: of each data set one.")
    if any(verdict.best is not None for _, verdict in every):
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
