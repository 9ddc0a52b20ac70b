"""A sweep's jobs before any of them starts: compiled, told apart, and what is to become of each."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from factory.compare.labels import labels
from factory.compare.runs import of_report
from factory.config.compose import Composed
from factory.config.refusal import Refusal, UserError, refuse
from factory.config.values import to_tree
from factory.config.words import between, duration, not_shown, size
from factory.plan.diff import matter
from factory.plan.plan import KNOWN_LATER, Plan, read_plan, to_json
from factory.run.folder import RunFolder, read_json, runs_here
from factory.run.screen import fitting
from factory.run.swept import SweepFolder

Compile = Callable[[Composed], Plan]
Fate = Literal["run", "continue", "keep", "reuse", "refuse"]
AS_IT_GOES = (
    "hydra/sweeper chooses each job when it has seen those before: none is known yet, each is compiled when it starts. "
    "Shown are two that it may choose: every swept key at its first value, and at its last."
)
_DIGEST = "digest: "  # how a plan's file starts
_BESIDE = 12  # letters of a name that leave room beside it for what differs
_LABEL, _FATE = 44, 20  # letters that a name or what differs, and what becomes of a job, have before they are broken
_NUMBERS: tuple[str, ...] = ("trainable", "memory", "steps", "training")
_LEAST = ("steps", "trainable", "training", "memory")  # left out in this order where there is no room


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`same` is the first job of the sweep with the same plan; `reused` the folder whose result stands for this job's.

    A job without a plan has `refusals`, unless it is kept. One that reads others (`after`) is planned again when they
    have ended.
    """

    name: str
    overrides: tuple[str, ...]
    plan: Plan | None
    refusals: tuple[Refusal, ...] = ()
    same: str | None = None
    fate: Fate = "run"
    reused: str | None = None
    after: tuple[str, ...] = ()

    @property
    def digest(self) -> str | None:
        return None if self.plan is None else self.plan.digest()


def compiled(jobs: Iterable[Composed], folder: str, compile: Compile) -> list[Job]:
    """Every job of the sweep in this folder with its plan or its refusals, and which of them are the same."""
    made, first = list[Job](), dict[str, str]()
    for composed in jobs:
        name = name_of(composed, folder)
        try:
            plan = compile(composed)
        except UserError as error:
            refused = Job(name=name, overrides=composed.overrides, plan=None, refusals=error.refusals, fate="refuse")
            made.append(refused)
            continue
        digest = plan.digest()
        made.append(Job(name=name, overrides=composed.overrides, plan=plan, same=first.get(digest)))
        first.setdefault(digest, name)
    return made


def name_of(composed: Composed, folder: str) -> str:
    """A job's place under the sweep's folder; whole where hydra.sweep.subdir leads out of it."""
    place, above = Path(composed.run_dir).absolute(), Path(folder).absolute()
    return (place.relative_to(above) if place.is_relative_to(above) else place).as_posix()


def continued(jobs: Sequence[Job], sweep: SweepFolder) -> list[Job]:
    """What is finished is kept, what was started goes on. Raises UserError where a job was another one then.

    A finished job needs nothing of this machine any more: it is kept where it would be refused by now.
    """
    ended, found = sweep.ended(), list[Job]()
    for job in jobs:
        folder, outcome = RunFolder(sweep.path / job.name), ended.get(job.name)
        there = folder.plan_digest()
        if job.plan is not None and there is not None and there != job.digest:
            wrong = f"job {job.name} was made from the plan {there}, and now has {job.digest}"
            raise refuse(
                "sweep-changed",
                f"sweep.resume={sweep.path}",
                wrong,
                because=(
                    "the data, the model or the configuration is not what it was, and the table would hold what "
                    "cannot be compared"
                ),
                fix=f"start the sweep again; `factory plan --diff {folder.path}/plan.yaml NEW` shows what changed",
            )
        if outcome is not None and outcome.reused is not None and outcome.code == 0:
            found.append(replace(job, fate="keep", reused=outcome.reused, refusals=()))
        elif there is not None and folder.status() == "finished":
            found.append(replace(job, fate="keep", refusals=(), plan=job.plan or _plan_of(folder)))
        elif job.plan is not None and there is not None:
            found.append(replace(job, fate="continue"))
        else:
            found.append(job)
    return found


def _plan_of(run: RunFolder) -> Plan | None:
    """As it was executed; None where this version cannot read it."""
    with suppress(UserError):
        return read_plan(run.plan)
    return None


def reusing(jobs: Sequence[Job], sweep: SweepFolder) -> list[Job]:
    """Jobs whose plan is that of an earlier job, or of a run that is finished and sound, take its result."""
    waiting = {job.digest: job.plan for job in jobs if job.fate == "run" and job.plan is not None}
    known = executed(waiting, sweep)
    found = list[Job]()
    for job in jobs:
        where = None if job.digest is None else known.get(job.digest)
        if job.fate == "run" and job.same is not None:
            earlier = next(each for each in found if each.name == job.same)
            where = Path(earlier.reused) if earlier.reused else sweep.path / job.same
        found.append(replace(job, fate="reuse", reused=str(where)) if job.fate == "run" and where else job)
    return found


def executed(plans: dict[str | None, Plan], sweep: SweepFolder) -> dict[str, Path]:
    """The newest folder of a run of each of these plans: finished, no check red, with the versions that matter."""
    found = dict[str, Path]()
    for folder in runs_here():
        try:
            with RunFolder(folder).plan.open(encoding="utf-8", errors="replace") as file:
                digest = file.readline().removeprefix(_DIGEST).strip()
        except OSError:  # gone since it was listed, or another's: it is not ours to take
            continue
        if digest in plans and folder.parent != sweep.path and _sound(folder, plans[digest]):
            found[digest] = folder
    return found


def _sound(folder: Path, plan: Plan) -> bool:
    report = read_json(RunFolder(folder).report)
    if report is None or of_report(report) != "finished":
        return False
    versions = report.get("versions", {})
    return all(versions.get(name) == plan.packages.get(name) for name in matter(plan))


class Shown:
    """The jobs as a table of what there is room for where it is printed: a log is wider than a terminal."""

    def __init__(self, jobs: Sequence[Job]):
        self._jobs = jobs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self._jobs, options.max_width)


def _table(jobs: Sequence[Job], width: int) -> Table:
    told = labels([job.plan.options if job.plan else {} for job in jobs], [job.overrides for job in jobs])
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="sweep: the plans", title_justify="left")
    under = max(len(job.name) for job in jobs) > _BESIDE
    beside = any(told) and not under
    said = [_in_lines(label) for label in told]
    numbers = [dict(zip(_NUMBERS, _numbers(job), strict=True)) for job in jobs]
    widths = _widths(jobs, said, numbers, beside=beside)
    shown = [name for name in fitting(widths, width, _LEAST, gap=2) if name in _NUMBERS]
    made.add_column("job", overflow="fold", no_wrap=not under)
    if beside:
        made.add_column("what differs", overflow="fold", max_width=_LABEL)
    for name in shown:
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("", overflow="fold")
    for job, label, cells in zip(jobs, said, numbers, strict=True):
        more = escape(label)
        name = escape(job.name) + (f"\n[dim]{more}[/dim]" if under and more else "")
        made.add_row(name, *([more] if beside else []), *(cells[name] for name in shown), _said(job))
    left_out = [name for name in _NUMBERS if name not in shown]
    later = any(job.plan and _trains(job) and KNOWN_LATER in str(job.plan.estimate.steps) for job in jobs)
    lines = [not_shown(left_out)] if left_out else []
    lines += [f"ranges of steps {KNOWN_LATER}"] if later and "steps" in shown else []
    for rule in dict.fromkeys(refusal.rule for job in jobs for refusal in job.refusals):
        names = (job.name for job in jobs if rule in [refusal.rule for refusal in job.refusals])
        lines.append(f"refused by [{rule}]: {', '.join(names)}")
    if lines:
        made.caption, made.caption_justify = escape("\n".join(lines)), "left"
    return made


def _widths(
    jobs: Sequence[Job], said: Sequence[str], numbers: Sequence[dict[str, str]], *, beside: bool
) -> dict[str, int]:
    """Of each column, without a break in a name, in what differs or in a number."""
    label = min(_LABEL, max(len(line) for text in said for line in text.split("\n")))
    name = min(_LABEL, max(len(job.name) for job in jobs))
    widths = {"job": name, "what differs": max(label, len("differs"))} if beside else {"job": max(name, label)}
    widths |= {each: max(len(each), *(len(cells[each]) for cells in numbers)) for each in _NUMBERS}
    fates = [word for job in jobs for word in Text.from_markup(_said(job)).plain.split()]
    return widths | {"": min(_FATE, max(map(len, fates)))}


def _in_lines(label: str) -> str:
    """`method=lora method.rank=8` as `method=lora` and `rank=8`: a terminal of 80 columns has no room for the group."""
    pairs = (text.partition("=") for text in label.split(" "))
    return "\n".join(f"{key.rpartition('.')[2]}{equals}{value}" for key, equals, value in pairs)


def _numbers(job: Job) -> tuple[str, str, str, str]:
    if job.plan is None:
        return "-", "-", "-", "-"
    estimate = job.plan.estimate
    trainable, memory = f"{estimate.parameters.trainable:,}", size(estimate.memory.total)
    if not _trains(job):
        return trainable, memory, "-", "-"
    seconds, steps = estimate.seconds, str(estimate.steps).replace(f" {KNOWN_LATER}", "")
    time = "?" if seconds is None else between(duration(seconds.low), duration(seconds.high))
    return trainable, memory, steps, time


def _trains(job: Job) -> bool:
    """A model that is measured as it is has neither steps nor a time of training."""
    return job.plan is not None and job.plan.verb == "train"


def _said(job: Job) -> str:
    if job.fate == "refuse":
        return "[yellow]refused[/yellow]"  # by which rules stands below: a narrow terminal would break their names
    fits = "" if job.plan is None else _FITS[job.plan.estimate.memory.fits]
    same = f"the same as {escape(job.same)}" if job.same else ""
    fate = _FATES[job.fate].format(reused=escape(job.reused or ""))
    after = f"again after {' and '.join(job.after)}" if job.after and job.fate == "run" else ""
    return ", ".join(filter(None, [fits, fate, same, after])) or "fits"


_FITS: dict[bool | None, str] = {True: "", False: "[bold]does not fit[/bold]", None: "hardware.memory is not known"}
_FATES: dict[Fate, str] = {
    "run": "",
    "continue": "continued from where it was",
    "keep": "finished before",
    "reuse": "taken from {reused}",
    "refuse": "",
}


def summary(jobs: Sequence[Job]) -> str:
    """How many there are of each kind, in a sentence."""
    count = {fate: sum(job.fate == fate for job in jobs) for fate in _FATES}
    parts = [
        f"{count['run']} to run",
        *(f"{count[fate]} {words}" for fate, words in _COUNTED.items() if count[fate]),
    ]
    ranges = [job.plan.estimate.seconds for job in jobs if job.plan and _trains(job) and job.fate == "run"]
    known = [each for each in ranges if each is not None]
    low, high = sum(each.low for each in known), sum(each.high for each in known)
    whole = known and len(known) == len(ranges)
    time = f" Training takes {between(duration(low), duration(high))} in all." if whole else ""
    again = sum(job.same is not None and job.fate == "run" for job in jobs)
    hint = f" {again} the same as another: sweep.reuse=true runs it once." if again else ""
    return f"{len(jobs)} jobs: {', '.join(parts)}.{time}{hint}"


_COUNTED: dict[Fate, str] = {
    "continue": "to continue",
    "keep": "finished before",
    "reuse": "taken from a run of the same plan",
    "refuse": "refused",
}


def as_json(jobs: Sequence[Job]) -> dict[str, Any]:
    return {
        "jobs": [
            {
                "job": job.name,
                "overrides": list(job.overrides),
                "same_as": job.same,
                "again_after": list(job.after),
                "refusals": [to_tree(each) for each in job.refusals],
                "plan": None if job.plan is None else to_json(job.plan),
            }
            for job in jobs
        ]
    }
