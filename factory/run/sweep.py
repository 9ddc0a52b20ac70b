"""A sweep: every job is compiled before the first starts, Hydra hands them out, and a comparison closes it."""

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from factory.compare import terminal, written
from factory.compare.comparison import Comparison, compared
from factory.compare.found import named, of_folder
from factory.compare.page import page
from factory.compare.runs import Status
from factory.config import compose, sweeps
from factory.config.line import name_of, names_a_folder, setting, spelt
from factory.config.redact import redacted
from factory.config.refusal import UserError, refusal, refuse
from factory.config.settings import Sweep, Tracking
from factory.config.words import pasted, program
from factory.execute.__main__ import FAILED, INTERRUPTED
from factory.execute.context import STARTED
from factory.outlet import outlets
from factory.plan.inspect.machine import look_at_machine
from factory.plan.plan import read_plan
from factory.plan.rule import Broken
from factory.plan.rules import secret_in_settings
from factory.run import jobs
from factory.run.folder import RunFolder, fresh, is_held, read_json, write_whole
from factory.run.jobs import Compile, Fate, Job
from factory.run.screen import Screen
from factory.run.swept import Outcome, Record, Recorded, SweepFolder, code_of
from factory.tracking import later, ledger
from factory.tracking.spec import shows
from factory.tracking.tracker import said

_jobs_unknown = partial(
    refuse,
    "jobs-unknown",
    because=(
        "what is not known before it starts cannot be taken from another run, and what is not chosen "
        "again not continued"
    ),
    fix="use Hydra's own sweeper (leave hydra/sweeper out), or leave the key out",
)

_UNDONE: tuple[Status, ...] = ("failed", "interrupted", "cut short", "running", "not run")
_NO_NAME = re.compile(r"[^\w.-]+", re.ASCII)  # what Hydra would have quoted
_TABLE = "table.json"  # the comparison as MLflow shows a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbs:
    """What a job is done with: compiled, run from its start, continued from where it was."""

    compile: Compile
    run: Callable[[compose.Composed], int]
    go_on: Callable[[RunFolder], int]


def planned(line: compose.CommandLine, compile: Compile) -> tuple[list[Job], bool]:
    """Every job, nothing of it executed, and whether it is every one: else two of those that a sweeper may choose."""
    folder, _ = sweeps.sweep_folder(line)
    found = sweeps.jobs(line, folder)
    known = not isinstance(found, sweeps.Choosing)
    return jobs.compiled(found if known else found.ends, folder, compile), known


def sweep(line: compose.CommandLine, asked: Sweep, verbs: Verbs, screen: Screen) -> int:
    """Runs every job and returns the exit code: 0 when all finished, 130 when interrupted, else 1."""
    before = SweepFolder(asked.resume).read() if asked.resume else None
    if asked.resume:
        line = recorded(line, asked.resume, before)
        asked = asked.model_copy(update={"reuse": asked.reuse or bool(before and before.reuse)})
    name, shared = sweeps.sweep_folder(line)
    folder = placed(name, line, asked)
    found = sweeps.jobs(line, str(folder.path))
    if isinstance(found, sweeps.Choosing):
        again, listed = _chosen_again(found, asked), list[Job]()
        shown, told = jobs.compiled(found.ends, str(folder.path), verbs.compile), jobs.AS_IT_GOES
    else:
        again, listed = (), _listed(found, folder, asked, verbs.compile)
        shown, told = listed, jobs.summary(listed)
    refuse_secrets(line, shown)
    screen.print(jobs.Shown(shown))
    screen.print(told)
    gpus = len(look_at_machine().gpus)
    with begun(folder, shared, line, before, listed, reuse=asked.reuse) as (tracking, parent):
        task = _Task(
            folder=str(folder.path),
            fates={job.name: (job.fate, job.reused) for job in listed},
            verbs=verbs,
            resumed=bool(asked.resume),
            gpus=gpus,
            config_dirs=line.config_dirs,
        )

        def close(stopped: bool) -> int:
            try:
                _note_others(folder, listed)
            except UserError as problem:  # a full disk: what there is to compare is compared all the same
                screen.print(str(problem), style="red", soft_wrap=True)
            return closed(folder, tracking, parent, stopped, screen, goes_on=again is not None)

        arguments = [*(again or ()), *_arguments(line, parent, folder)]
        return worked_through(lambda: _handed_out(arguments, task), close, folder)


def placed(name: str, line: compose.CommandLine, asked: Sweep) -> SweepFolder:
    """Where it was, where the line says, or a new folder. Raises UserError where another sweep has its jobs there."""
    if asked.resume:
        return SweepFolder(asked.resume)
    if not names_a_folder(line, "hydra.sweep.dir"):
        return SweepFolder(fresh(name))
    folder = SweepFolder(name)
    if folder.is_there() and any(RunFolder(folder.path / job).plan.is_file() for job in folder.names()):
        onward = _resume(folder)
        raise refuse(
            "sweep-taken",
            f"hydra.sweep.dir={folder.path}",
            "there is a sweep in it",
            because="its record and its table would be replaced, and its jobs stand in them as refused",
            fix=f"continue it with `{onward}`, or set another hydra.sweep.dir",
        )
    return folder


def _resume(folder: SweepFolder) -> str:
    return f"{program('factory')} -m {setting('sweep.resume', folder.path)}"


def refuse_secrets(line: compose.CommandLine, listed: Sequence[Job]) -> None:
    """A job that is refused stops no other, but a sweep's own files hold every job's settings. Raises UserError.

    The texts are looked at too: not all that a sweeper may choose is compiled, nor what is under a key that is refused.
    """
    found = [refused for job in listed for refused in job.refusals if refused.rule == secret_in_settings.id]
    texts = (*line.overrides, *(text for job in listed for text in job.overrides))
    hidden = dict.fromkeys(clean for text in texts if (clean := redacted(text)) != text)
    if found := found or [secret_in_settings.refusal(text, Broken(message=_WRITTEN)) for text in hidden]:
        raise UserError(*dict.fromkeys(found))


_WRITTEN = "a password or a token in it would be written to the sweep's folder and shown"


@contextmanager
def begun(
    folder: SweepFolder,
    common: compose.Composed,
    line: compose.CommandLine,
    before: Record | None,
    listed: list[Job],
    *,
    reuse: bool = False,
) -> Iterator[tuple[Tracking, str | None]]:
    """The sweep's folder, claimed, with its record in it; how the jobs are tracked, and under what."""
    with RunFolder(folder.path).claimed():
        tracking = Tracking.model_validate(common.tree["tracking"])
        parent = _parent_run(tracking, folder, line, before.parent_run if before else None)
        folder.write(record(line, listed, parent, reuse=reuse))
        yield tracking, parent


def recorded(line: compose.CommandLine, folder: str, before: Record | None) -> compose.CommandLine:
    """The command line that the sweep was started with."""
    if before is None:
        hint = f"one run goes on by `{pasted('resume', folder)}`; " if RunFolder(folder).plan.is_file() else ""
        wrong = "there is no sweep.json in it that can be read"
        raise refuse(
            "sweep-missing",
            f"sweep.resume={folder}",
            wrong,
            because="sweep.json lists the jobs",
            fix=f"{hint}name the folder that the sweep printed, as in sweep.resume=multirun_sweeps/DATE/TIME",
        )
    if line.overrides or line.config_dirs:
        given = " ".join([*line.overrides, *(f"--config-dir {each}" for each in line.config_dirs)])
        raise refuse(
            "sweep-fixed",
            given,
            "a sweep is continued as it was started",
            because="its jobs are compared with each other, and must all be made alike",
            fix="leave it out, or start a sweep of its own",
        )
    return replace(line, overrides=before.overrides, config_dirs=before.config_dirs)


def _listed(composed: Sequence[compose.Composed], folder: SweepFolder, asked: Sweep, compile: Compile) -> list[Job]:
    """The jobs with what is to become of each."""
    found = jobs.compiled(composed, str(folder.path), beside(compile) if asked.resume else compile)
    found = jobs.continued(found, folder) if asked.resume else found
    return jobs.reusing(found, folder) if asked.reuse else found


def _chosen_again(found: sweeps.Choosing, asked: Sweep) -> tuple[str, ...] | None:
    """The overrides with which a sweeper chooses the same jobs again. Raises UserError where that is asked in vain."""
    if asked.reuse:
        raise _jobs_unknown("sweep.reuse", "hydra/sweeper chooses each job as it goes")
    if asked.resume and found.again is None:
        raise _jobs_unknown("sweep.resume", "hydra/sweeper takes no seed, and would choose other jobs")
    return found.again


def beside(compile: Compile) -> Compile:
    """Compiles a job as if nothing were in its folder yet: what is there is looked at by `jobs.continued`."""
    return lambda composed: compile(replace(composed, run_dir=str(Path(composed.run_dir) / "anew")))


def _arguments(line: compose.CommandLine, parent: str | None, folder: SweepFolder) -> list[str]:
    nested = [f"++tracking.parent_run={parent}"] if parent else []
    kept = (text for text in line.overrides if name_of(text) not in ("hydra.sweep.dir", "hydra.mode"))
    return [*kept, *nested, f"hydra.sweep.dir={spelt(folder.path.as_posix())}", "--multirun"]


def record(line: compose.CommandLine, listed: Sequence[Job], parent: str | None, *, reuse: bool = False) -> Record:
    return Record(
        overrides=line.overrides,
        config_dirs=line.config_dirs,
        parent_run=parent,
        jobs=tuple(
            Recorded(name=job.name, overrides=job.overrides, digest=job.digest, refused=first_refusal(job))
            for job in listed
        ),
        reuse=reuse,
    )


def first_refusal(job: Job) -> str | None:
    return f"[{job.refusals[0].rule}] {job.refusals[0].setting}: {job.refusals[0].wrong}" if job.refusals else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A job in whichever process a launcher gives it: it is sent there whole, so it holds plain values alone.

    `gpus` are how many the sweep's own process sees.
    """

    folder: str
    fates: dict[str, tuple[Fate, str | None]]
    verbs: Verbs
    resumed: bool
    gpus: int
    config_dirs: tuple[str, ...]

    def __call__(self, config: Any) -> float:
        with outlets(goes_on=True):  # a launcher's process has none yet
            return self._done(config)

    def _done(self, config: Any) -> float:
        composed = self._checked(sweeps.of_job(config, self.config_dirs))
        name = jobs.name_of(composed, self.folder)
        fate, reused = self.fates.get(name, ("run", None))
        run = RunFolder(reused or composed.run_dir)
        if fate == "run" and self._begun(name, run):
            fate = self._fate(name, composed)
        if fate in ("run", "continue", "refuse"):
            words = " ".join(composed.overrides) or "(defaults)"
            Screen().print(f"\njob {composed.run_dir}: {words}", style="bold", soft_wrap=True)
            os.environ[STARTED] = str(time.monotonic())
            code = self.verbs.go_on(run) if fate == "continue" else self.verbs.run(composed)
            SweepFolder(self.folder).note(name, noted(code, run), overrides=list(composed.overrides))
            if code == INTERRUPTED:
                raise KeyboardInterrupt  # which Hydra lets through: of an Exception it would go on to the next job
        return _value(run)

    def _checked(self, composed: compose.Composed) -> compose.Composed:
        """With a refusal where a launcher hides the GPUs: submitit and Ray do, unless a job asks for some."""
        if not self.gpus or composed.tree["hardware"]["device"] != "auto" or look_at_machine().gpus:
            return composed
        wrong = f"the job's process sees none of the {self.gpus} GPUs that the sweep's does"
        return replace(
            composed,
            problems=(
                *composed.problems,
                refusal(
                    "gpu-hidden",
                    "hydra/launcher",
                    wrong,
                    because="the job would train on the CPU, which is not what was planned",
                    fix=(
                        "hydra.launcher.gpus_per_node=1 (submitit), +hydra.launcher.ray.remote.num_gpus=1 (Ray), or "
                        "hardware=cpu"
                    ),
                ),
            ),
        )

    def _begun(self, name: str, run: RunFolder) -> bool:
        """Before by this sweep: it is continued, or its launcher starts a job again that was past its time."""
        known, sweep = name in self.fates, SweepFolder(self.folder)
        if self.resumed and not known:
            return True
        return run.plan.is_file() and run.plan.stat().st_mtime > sweep.record.stat().st_mtime

    def _fate(self, name: str, composed: compose.Composed) -> Fate:
        """A chosen job that ended stays as it ended: those after it were chosen by that. Raises UserError."""
        sweep = SweepFolder(self.folder)
        (job,) = jobs.continued(jobs.compiled([composed], self.folder, beside(self.verbs.compile)), sweep)
        _note_kept(sweep, job)
        ended = sweep.ended().get(name)
        return "keep" if ended is not None and ended.code != INTERRUPTED else job.fate


def worked_through(work: Callable[[], int], close: Callable[[bool], int], folder: SweepFolder) -> int:
    """Does the jobs, and returns the exit code. Whatever stops them, `close` comes last: it hears of an interruption.

    Raises UserError where they were refused. A disk that is full is no refusal: hours of work may have filled it.
    """
    problem: UserError | None = None
    try:
        ended = work()
    except KeyboardInterrupt:
        ended = INTERRUPTED
    except UserError as error:
        ended, problem = FAILED, error
    except Exception:
        close(False)
        raise
    try:
        code = close(ended == INTERRUPTED) or ended
    except KeyboardInterrupt:
        print(f"Interrupted before all was told. To continue: {_resume(folder)}", file=sys.stderr)
        return INTERRUPTED
    if problem is not None:
        if {found.rule for found in problem.refusals} != {"cannot-write"}:
            raise problem
        print(problem, file=sys.stderr)
    return code


def _handed_out(arguments: list[str], made: _Task) -> int:
    """How Hydra ended: 0, or failed. Raises UserError where it was refused, and KeyboardInterrupt."""

    def task(config: Any) -> float:  # Hydra wants a function
        return made(config)

    try:
        compose.hydra_main(task, arguments, compose.CommandLine(overrides=(), config_dirs=made.config_dirs))
    except UserError:
        raise
    except Exception as error:  # whatever a launcher or a sweeper raises: what the jobs left is compared all the same
        log = Path(made.folder) / "error.log"
        write_whole(log, redacted("".join(traceback.format_exception(error))))
        print(f"hydra/launcher or hydra/sweeper failed: {said(error)}. The traceback is in {log}", file=sys.stderr)
        return FAILED
    return 0


def _value(run: RunFolder) -> float:
    """What an optimizing sweeper minimizes: the first of `_OBJECTIVES` of the held-out rows, or where none is held out
    of the last line of training; infinity, the worst that there is, of a job that did not finish.
    """
    report = read_json(run.report) or {}
    if report.get("status") != "finished":
        return inf
    figures = report.get("evaluate", {})
    if not figures.keys() & _OBJECTIVES.keys():
        figures = next(reversed(ledger.whole_lines(run.metrics)), {})
    return next((sign * figures[name] for name, sign in _OBJECTIVES.items() if figures.get(name) is not None), inf)


_OBJECTIVES = {"perplexity": 1.0, "reward": -1.0, "loss": 1.0}  # and whether less of it is better


def _note_others(folder: SweepFolder, listed: Sequence[Job]) -> None:
    """How jobs ended that were not run here: as the run that they took the result of, or as they did before."""
    for job in listed:
        ended = folder.ended()
        if job.fate == "reuse" and job.reused is not None:
            place = folder.noted_place(job.reused)
            outcome = ended.get(place, Outcome(code=0) if Path(place).is_absolute() else None)
            if outcome is not None:
                folder.note(job.name, outcome.code, reused=place)
        _note_kept(folder, job)


def _note_kept(folder: SweepFolder, job: Job) -> None:
    """Where the sweep was stopped or killed before it could note it, or has noted what its run is not any more."""
    if job.fate != "keep" or job.reused is not None:
        return
    noted, code = folder.ended().get(job.name), code_of(RunFolder(folder.path / job.name))
    if noted is None or noted.code != code:
        folder.note(job.name, code)


def noted(code: int, run: RunFolder) -> int:
    """What is noted of a job that ended with this code: one that was over when it was asked to stop is not to go on."""
    return code_of(run) if code == INTERRUPTED and run.status() in ("finished", "failed") else code


def closed(
    folder: SweepFolder,
    tracking: Tracking,
    parent: str | None,
    stopped: bool,
    screen: Screen,
    *,
    goes_on: bool = True,
    stays: Collection[str] = (),
) -> int:
    """Compares what there is, tells of it, and returns the exit code.

    `goes_on`: whether it could be continued; `stays`: the jobs of which nothing would come then.
    """
    done = folder.is_done()
    made = compared(named(of_folder(folder.path))) if folder.names() else None
    if made is not None:
        for each in terminal.summary(made, screen.console.width):
            screen.print(each)
        again = pasted("compare", folder.path)
        try:
            write_whole(folder.table, written.markdown(made))
            write_whole(folder.page, page(made))
            screen.print(f"Written to {folder.table} and {folder.page}", soft_wrap=True)
        except UserError as problem:  # a full disk: what there is to say is said all the same
            screen.print(str(problem), style="red", soft_wrap=True)
        screen.print(f"Next: {again}  # more of it; compare.out=PAGE.html: the page again", soft_wrap=True)
    if (shown := shows(tracking, folder.path / "*")) is not None:
        screen.print(f"Next: {shown}", soft_wrap=True)
    undone = [run for run in made.runs if run.status in _UNDONE and run.name not in stays] if made is not None else []
    if goes_on and undone:
        screen.print(f"To continue: {_resume(folder)}", soft_wrap=True)
    _close_parent(tracking, parent, folder, made, stopped)
    return INTERRUPTED if stopped else 0 if done else FAILED


def _parent_run(tracking: Tracking, folder: SweepFolder, line: compose.CommandLine, known: str | None) -> str | None:
    """What the jobs are nested under: a run of its own in MLflow, a name in the other tools."""
    if not tracking.on or tracking.mlflow is None:
        return _NO_NAME.sub("_", "_".join(folder.path.parts[-2:])) if tracking.on else None
    try:
        return _parent_in_mlflow(tracking, folder, line.overrides, known)
    except Exception as error:  # whatever a server may raise: the jobs run all the same
        again = pasted("track", folder.path)
        print(f"MLflow cannot be reached ({said(error)}). What it misses is sent by: {again}", file=sys.stderr)
        return known


def _parent_in_mlflow(
    tracking: Tracking, folder: SweepFolder, overrides: Sequence[str], known: str | None, started: float | None = None
) -> str:
    """`started` is in seconds since the epoch; None: now."""
    from factory.tracking.to_mlflow import PARENT, connect, outer_run

    client, experiment = connect(tracking)
    if known is not None:
        client.update_run(known, status="RUNNING")
        return known
    tags = {"overrides": redacted(" ".join(overrides))}
    if (outer := outer_run(client)) is not None:
        tags[PARENT] = outer
    name, began = f"sweep {folder.path}", None if started is None else round(1000 * started)
    return client.create_run(experiment, began, tags=tags, run_name=name).info.run_id


def _close_parent(
    tracking: Tracking, parent: str | None, folder: SweepFolder, made: Comparison | None, stopped: bool
) -> None:
    if parent is None or tracking.mlflow is None:
        return
    try:
        _close_in_mlflow(tracking, parent, folder, made, stopped=stopped)
    except Exception as error:  # as above
        again = pasted("track", folder.path)
        print(f"MLflow did not get {folder.table} ({said(error)}). To send it: {again}", file=sys.stderr)


def _close_in_mlflow(
    tracking: Tracking,
    parent: str,
    folder: SweepFolder,
    made: Comparison | None,
    *,
    stopped: bool = False,
    ended: float | None = None,
) -> None:
    """`ended` is in seconds since the epoch; None: now."""
    from factory.tracking.to_mlflow import connect, log_table

    client, _ = connect(tracking)
    if made is not None:
        client.log_artifact(parent, str(folder.table))
        client.log_artifact(parent, str(folder.page))
        log_table(client, parent, _TABLE, _rows(made))
    client.set_terminated(parent, _status(folder, stopped=stopped), None if ended is None else round(1000 * ended))


def _status(folder: SweepFolder, *, stopped: bool) -> str:
    """MLflow's word for how it ended: as of one run, what a person stopped did not fail."""
    if folder.is_done():
        return "FINISHED"
    interrupted = any(each.code == INTERRUPTED for each in folder.ended().values())
    return "KILLED" if stopped or interrupted else "FAILED"


def tracked(place: str, chosen: dict[str, Any]) -> list[later.Sent]:
    """Sends what of a sweep's runs, and of its own, did not arrive. Raises UserError."""
    folder, runs = SweepFolder(place), later.runs_of(place)
    first = read_plan(runs[0].plan)
    tracking = later.elsewhere(first, chosen, None).settings.tracking
    if tracking.mlflow is None:
        return [_sent(run, tracking, chosen, tracking.parent_run) for run in runs]
    try:
        copy = ledger.place(tracking) != ledger.place(first.settings.tracking)
        parent = _parent_later(tracking, folder, runs, copy=copy)
    except Exception as error:  # whatever a server may raise
        return [later.unreached(run, tracking, said(error)) for run in runs]
    sent = [_sent(run, tracking, chosen, parent) for run in runs]
    try:
        _nest(tracking, runs, parent)
        if not is_held(RunFolder(folder.path).lock):  # else it says itself how it ends
            _close_later(tracking, parent, folder, runs)
    except Exception as error:  # as above
        return [*sent, later.unreached(RunFolder(folder.path), tracking, said(error))]
    return sent


def _parent_later(tracking: Tracking, folder: SweepFolder, runs: Sequence[RunFolder], *, copy: bool) -> str:
    """The run above the jobs, made where there is none. The record names it, that of a copy the folder's ledger."""
    record, own = folder.read(), ledger.of(tracking, RunFolder(folder.path))
    assert record is not None
    if (known := own.run_id if copy else record.parent_run) is not None:
        return known
    began = min(ledger.of(tracking, run).started for run in runs)
    parent = _parent_in_mlflow(tracking, folder, record.overrides, None, began)
    if copy:
        replace(own, run_id=parent).write(RunFolder(folder.path))
    else:
        folder.write(replace(record, parent_run=parent))
    return parent


def _close_later(tracking: Tracking, parent: str, folder: SweepFolder, runs: Sequence[RunFolder]) -> None:
    """It ended when the last of its jobs did."""
    made = compared(named(of_folder(folder.path))) if folder.table.is_file() else None
    ended = [book.ended for run in runs if (book := ledger.of(tracking, run)).ended is not None]
    _close_in_mlflow(tracking, parent, folder, made, ended=max(ended, default=None))


def _sent(run: RunFolder, tracking: Tracking, chosen: dict[str, Any], parent: str | None) -> later.Sent:
    """One that goes on, or whose plan cannot be read, holds up no other."""
    try:
        return later.of_run(run, chosen, parent)
    except UserError as error:
        return later.unreached(run, tracking, error.refusals[0].wrong)


def _nest(tracking: Tracking, runs: Sequence[RunFolder], parent: str) -> None:
    """Runs that were sent when there was no parent to name."""
    from factory.tracking.to_mlflow import PARENT, connect

    client, _ = connect(tracking)
    for run in runs:
        if (run_id := ledger.of(tracking, run).run_id) is not None:
            client.set_tag(run_id, PARENT, parent)


def _rows(made: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "run": made.names[place],
            **{column.title: column.value(run) for column in made.columns},
            "status": run.status,
        }
        for place, run in enumerate(made.runs)
    ]
