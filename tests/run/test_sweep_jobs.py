"""A sweep's jobs are known before one starts, go on where they are not done, and run once where they are the same."""

import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import side_by_side
from forbidden import forbid

from factory.compare.found import of_folder
from factory.config import compose
from factory.config import sweeps as handed_out
from factory.config.refusal import UserError, refuse
from factory.config.settings import Sweep
from factory.config.words import program
from factory.execute.report import as_json, blank
from factory.plan.facts import Gpu
from factory.plan.plan import Plan, Span, read_plan, to_yaml
from factory.run import jobs
from factory.run import sweep as sweeps
from factory.run import swept as noting
from factory.run.folder import RunFolder, unwritable
from factory.run.screen import Screen
from factory.run.sweep import Verbs, sweep
from factory.run.swept import Record, SweepFolder
from factory.verbs import train

FOLDER = "multirun_sweeps/one/a"
LINE = compose.CommandLine(overrides=("seed=1,2", "tracking=none"), multirun=True)


def compiled(composed: compose.Composed) -> Plan:
    if "refused" in composed.overrides:
        raise refuse("projection-rank", "method.rank=9", "it is too much", because="it is", fix="change it")
    return side_by_side.plan(*composed.overrides)


class Runs:
    """What a run leaves, without training. `codes` are what jobs end with, by their place; `log` what was done."""

    def __init__(self, **codes: int):
        self._codes, self.log = codes, list[str]()

    @property
    def verbs(self) -> Verbs:
        return Verbs(compile=self._compile, run=self._run, go_on=self._go_on)

    def _compile(self, composed: compose.Composed) -> Plan:
        self.log.append("compile")
        return compiled(composed)

    def _run(self, composed: compose.Composed) -> int:
        folder = RunFolder(composed.run_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            plan = compiled(composed)
        except UserError:
            return 2
        folder.plan.write_text(to_yaml(plan))
        return self._ended("run", folder, plan)

    def _go_on(self, folder: RunFolder) -> int:
        return self._ended("go on", folder, read_plan(folder.plan))

    def _ended(self, what: str, folder: RunFolder, plan: Plan) -> int:
        self.log.append(f"{what} {folder.path.name}")
        code = self._codes.get(f"job{folder.path.name}", 0)
        if code == 0:
            folder.report.write_text(as_json({**blank(plan, "finished"), "evaluate": {"perplexity": 9.0}}))
        return code

    @property
    def done(self) -> list[str]:
        return [each for each in self.log if each != "compile"]


def composed(texts: list[str], folder: str) -> list[compose.Composed]:
    return [
        compose.Composed(tree={"hardware": {"device": "auto"}}, overrides=tuple(text.split()), run_dir=f"{folder}/{at}")
        for at, text in enumerate(texts)
    ]


Swept = Callable[..., int]


@pytest.fixture
def swept(here: Path, monkeypatch: pytest.MonkeyPatch) -> Swept:
    """`factory -m` over jobs that are given as they are, with no Hydra to hand them out."""
    monkeypatch.setenv("COLUMNS", "160")
    shared = compose.compose(compose.parse(["tracking=none"]))

    def swept(
        runs: Runs,
        texts: list[str],
        folder: str = FOLDER,
        *,
        resume: bool = False,
        reuse: bool = False,
        known: bool = True,
        seeded: bool = True,
        hydra: Callable[..., Any] = lambda task, handed: [task(each) for each in handed],
    ) -> int:
        handed = composed(texts, folder)
        choosing = handed_out.Choosing(ends=tuple(handed[:1]), again=("seed=1",) if seeded else None)
        monkeypatch.setattr(handed_out, "sweep_folder", lambda *_: (folder, shared))
        monkeypatch.setattr(handed_out, "jobs", lambda *_: handed if known else choosing)
        monkeypatch.setattr(handed_out, "of_job", lambda config, *_: config)
        monkeypatch.setattr(compose, "hydra_main", lambda task, *_: hydra(task, handed))
        line = compose.CommandLine(overrides=() if resume else ("seed=1",), multirun=True)
        return sweep(line, Sweep(resume=folder if resume else None, reuse=reuse), runs.verbs, Screen())

    return swept


RANKS = ["method.rank=2", "method.rank=4", "method.rank=6"]


def test_all_jobs_are_compiled_before_the_first_starts(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    assert swept(runs, ["method=lora", "refused", "method=full"]) == 1
    assert runs.log == ["compile"] * 3 + ["run 0", "run 2"]
    plans, _, rest = capsys.readouterr().out.partition("3 jobs: 2 to run, 1 refused.")
    assert "method=lora" in plans and "2,442,240" in plans and "refused by [projection-rank]: 1" in plans
    assert "refused: [projection-rank] method.rank=9: it is too much." in rest
    tree = json.loads(SweepFolder(FOLDER).record.read_text())
    assert [job["refused"] is not None for job in tree["jobs"]] == [False, True, False]
    ended = SweepFolder(FOLDER).ended()
    assert {name: outcome.code for name, outcome in ended.items()} == {"0": 0, "1": 2, "2": 0}


def test_an_interrupted_sweep_stops_and_goes_on_with_what_is_missing(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Runs(job1=130)
    assert swept(first, RANKS) == 130
    assert first.done == ["run 0", "run 1"]
    assert f"-m sweep.resume={FOLDER}" in capsys.readouterr().out
    second = Runs()
    assert swept(second, RANKS, resume=True) == 0
    assert second.done == ["go on 1", "run 2"]
    SweepFolder(FOLDER).outcomes.unlink()  # killed before it could note how they ended
    third = Runs()
    assert swept(third, RANKS, resume=True) == 0
    assert third.done == [] and len(SweepFolder(FOLDER).ended()) == 3


def test_a_failed_job_stops_no_other_and_is_tried_again(swept: Swept) -> None:
    first, second = Runs(job0=1), Runs()
    assert swept(first, RANKS[:2]) == 1
    assert first.done == ["run 0", "run 1"]
    assert swept(second, RANKS[:2], resume=True) == 0
    assert second.done == ["go on 0"]


class NoMore(Runs):
    """Of a machine on which no job fits any more."""

    def _compile(self, composed: compose.Composed) -> Plan:
        raise refuse("projection-rank", "method.rank=9", "it is too much", because="it is", fix="change it")


def test_a_finished_job_is_kept_where_it_would_be_refused_by_now(
    swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what an older version noted of it then is put right."""
    assert swept(Runs(), RANKS[:2]) == 0
    capsys.readouterr()
    again = NoMore()
    assert swept(again, RANKS[:2], resume=True) == 0
    assert again.done == [] and [run.status for run in of_folder(Path(FOLDER))] == ["finished"] * 2
    told = capsys.readouterr().out
    assert "2 finished before" in told and "refused" not in told
    assert all(job.digest and not job.refused for job in recorded(FOLDER).jobs)
    with SweepFolder(FOLDER).outcomes.open("a") as file:
        file.write('{"job": "0", "code": 2, "overrides": []}\n')
    assert of_folder(Path(FOLDER))[0].status == "refused"
    assert swept(NoMore(), RANKS[:2], resume=True) == 0
    assert [run.status for run in of_folder(Path(FOLDER))] == ["finished"] * 2
    RunFolder(f"{FOLDER}/1").plan.write_text("digest: other\n")  # of a version that this one cannot read
    assert swept(NoMore(), RANKS[:2], resume=True) == 0


def recorded(folder: str) -> Record:
    record = SweepFolder(folder).read()
    assert record is not None
    return record


@pytest.mark.parametrize("known", [True, False])
def test_a_job_that_was_continued_by_itself_has_ended_so(known: bool, swept: Swept) -> None:
    assert swept(Runs(job1=1), RANKS[:2], known=known) == 1
    run = RunFolder(f"{FOLDER}/1")
    Runs().verbs.go_on(run)  # as `factory resume` does
    later = time.time() + 5
    os.utime(run.report, (later, later))
    sweep = SweepFolder(FOLDER)
    assert sweep.is_done() and [each.status for each in of_folder(sweep.path)] == ["finished"] * 2
    again = Runs()
    assert swept(again, RANKS[:2], known=known, resume=True) == 0 and again.done == []
    lines = [json.loads(text) for text in sweep.outcomes.read_text().splitlines()]
    untimed = ({name: line[name] for name in line if name != "time"} for line in lines if line["code"])
    sweep.outcomes.write_text("".join(f"{json.dumps(line)}\n" for line in untimed))  # of an older version
    assert not sweep.is_done()
    assert swept(Runs(), RANKS[:2], known=known, resume=True) == 0 and sweep.is_done()


SECRET = "tracking.uri=https://me:hunter2@host"


@pytest.mark.parametrize("words", [[SECRET, "seed=1,2"], ["tracking.uri=a,https://me:hunter2@host"]])
def test_a_sweep_writes_no_secret(words: list[str], command: Callable[..., Any], here: Path) -> None:
    said = command("-m", "hardware=cpu", *words)
    assert said.code == 2 and "secret-in-settings" in said.rules
    assert "hunter2" not in said.out + said.err and not list(here.iterdir())


def test_a_secret_that_a_sweeper_may_choose_is_written_nowhere(swept: Swept) -> None:
    with pytest.raises(UserError, match=r"\[secret-in-settings\] tracking.uri=https://\[redacted\]@host"):
        swept(Runs(), [SECRET], known=False)
    assert not Path(FOLDER).exists()


def test_a_sweep_that_is_continued_still_takes_what_was_run(swept: Swept) -> None:
    assert swept(Runs(job0=130), [*RANKS[:2], RANKS[1]], reuse=True) == 130
    again = Runs()
    assert swept(again, [*RANKS[:2], RANKS[1]], resume=True) == 0
    assert again.done == ["go on 0", "run 1"] and SweepFolder(FOLDER).ended()["2"].reused == f"{FOLDER}/1"
    tree = json.loads(SweepFolder(FOLDER).record.read_text())
    del tree["reuse"]
    SweepFolder(FOLDER).record.write_text(json.dumps(tree))
    assert recorded(FOLDER).reuse is False  # a sweep of an older version


def test_a_plan_that_may_not_be_read_or_is_gone_is_passed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, shut = (side_by_side.run(here / "outputs" / "day" / name, RANKS[0]) for name in ("good", "shut"))
    forbid(shut / "plan.yaml", monkeypatch)
    asked = jobs.compiled(composed(RANKS[:1], "swept"), "swept", compiled)
    (job,) = jobs.reusing(asked, SweepFolder("swept"))
    assert job.reused == str(good.relative_to(here))


def test_a_sweep_that_was_another_is_not_continued(swept: Swept) -> None:
    assert swept(Runs(job1=1), RANKS[:2]) == 1
    runs = Runs()
    with pytest.raises(UserError, match=r"\[sweep-changed\].*job 1 was made from the plan"):
        swept(runs, [RANKS[0], RANKS[2]], resume=True)
    with pytest.raises(UserError, match=r"\[sweep-missing\]"):
        swept(runs, RANKS, "nowhere", resume=True)
    line = compose.CommandLine(overrides=("seed=1",), multirun=True)
    with pytest.raises(UserError, match=r"\[sweep-fixed\]"):
        sweep(line, Sweep(resume=FOLDER, reuse=False), runs.verbs, Screen())
    assert runs.done == []


def test_the_same_job_is_found_and_run_once_when_asked(
    swept: Swept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it took is found from another folder, and where its sweep is moved to."""
    runs = Runs()
    assert swept(runs, [*RANKS[:2], RANKS[0]]) == 0
    assert len(runs.done) == 3
    assert "1 the same as another: sweep.reuse=true runs it once" in capsys.readouterr().out
    again, other = Runs(), "multirun_sweeps/one/b"
    assert swept(again, [RANKS[2], RANKS[0], RANKS[2]], other, reuse=True) == 0
    assert again.done == ["run 0"]
    reused = {name: outcome.reused for name, outcome in SweepFolder(other).ended().items()}
    assert reused == {"0": None, "1": str(Path(FOLDER, "2").absolute()), "2": f"{other}/0"}
    assert f"{FOLDER}/2, whose plan is the same" in capsys.readouterr().out
    shutil.move(other, "moved")
    monkeypatch.chdir("moved")
    assert [run.status for run in of_folder(Path())] == ["finished"] * 3


def test_a_job_that_takes_a_failed_ones_result_failed(swept: Swept) -> None:
    assert swept(Runs(job0=1), [RANKS[0], RANKS[0]], reuse=True) == 1
    assert {name: outcome.code for name, outcome in SweepFolder(FOLDER).ended().items()} == {"0": 1, "1": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"checks": {"save_reload": {"passed": False, "detail": ""}}},
        {"versions": {"torch": "2.0"}},
    ],
    ids=str,
)
def test_a_run_that_is_not_sound_is_not_reused(change: dict[str, Any], here: Path) -> None:
    folder = side_by_side.run(here / "outputs" / "day" / "time", RANKS[0])
    sweep = SweepFolder("swept")
    asked = jobs.compiled(composed(RANKS[:1], "swept"), "swept", compiled)
    assert [job.fate for job in jobs.reusing(asked, sweep)] == ["reuse"]
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**report, **change}))
    assert [job.fate for job in jobs.reusing(asked, sweep)] == ["run"]


def test_a_sweeper_that_chooses_as_it_goes_is_left_to_it(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    assert swept(runs, RANKS[:2], known=False) == 0
    assert runs.log == ["compile", "run 0", "run 1"] and "none is known yet" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"\[jobs-unknown\] sweep.reuse"):
        swept(runs, RANKS, reuse=True, known=False)


def test_chosen_jobs_stay_as_they_ended_and_the_others_run(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    told = list[float]()

    def hydra(task: Callable[..., float], handed: list[compose.Composed]) -> None:
        told[:] = [task(each) for each in handed]

    texts = ["method.rank=2", "refused", "method.rank=4", "method.rank=6"]
    assert swept(Runs(job2=130), texts, known=False) == 130
    capsys.readouterr()
    again = Runs()
    assert swept(again, texts, known=False, resume=True, hydra=hydra) == 1
    assert again.done == ["go on 2", "run 3"]
    assert told == [9.0, inf, 9.0, 9.0]
    said = capsys.readouterr().out
    assert "method.rank=6" in said and "refused" in said  # of a job that is not listed beforehand its outcome tells
    with pytest.raises(UserError, match=r"\[sweep-changed\].*job 0 was made from the plan"):
        swept(Runs(), ["method.rank=8"], known=False, resume=True)


def test_what_no_seed_repeats_is_not_continued(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(Runs(job0=1), RANKS[:1], known=False, seeded=False) == 1
    assert "sweep.resume" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"\[jobs-unknown\] sweep.resume"):
        swept(Runs(), RANKS[:1], known=False, seeded=False, resume=True)


def test_a_job_that_its_launcher_starts_again_goes_on(swept: Swept) -> None:
    """Past its time, or preempted."""

    def hydra(task: Callable[..., float], handed: list[compose.Composed]) -> None:
        run = RunFolder(handed[0].run_dir)
        run.path.mkdir(parents=True)
        run.plan.write_text(to_yaml(compiled(handed[0])))  # and killed
        task(handed[0])

    runs = Runs()
    assert swept(runs, RANKS[:1], hydra=hydra) == 0
    assert runs.done == ["go on 0"]


def test_of_a_launcher_that_fails_the_jobs_are_compared(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    def hydra(task: Callable[..., float], handed: list[compose.Composed]) -> None:
        task(handed[0])
        raise RuntimeError("no answer")

    assert swept(Runs(), RANKS[:2], hydra=hydra) == 1
    said = capsys.readouterr()
    assert "failed: RuntimeError: no answer." in said.err and "not run" in said.out
    assert "no answer" in (SweepFolder(FOLDER).path / "error.log").read_text()
    assert swept(Runs(), RANKS[:1], "multirun_sweeps/one/all", hydra=hydra) == 1  # though every job finished


def test_a_disk_that_a_job_filled_ends_the_sweep_with_what_there_is(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it was refused."""

    def full(path: Path, _line: Any) -> None:
        raise unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(noting, "append", full)
    runs = Runs()
    assert swept(runs, RANKS[:2]) == 1
    said = capsys.readouterr()
    assert runs.done == ["run 0"] and "[cannot-write]" in said.err and f"-m sweep.resume={FOLDER}" in said.out


def test_a_launcher_that_hides_the_gpus_is_refused(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[str, ...]]()

    def run(composed: compose.Composed) -> int:
        seen.append(tuple(problem.rule for problem in composed.problems))
        return 2

    monkeypatch.setattr(Runs, "verbs", property(lambda runs: Verbs(compile=compiled, run=run, go_on=runs._go_on)))
    bare = replace(sweeps.look_at_machine(), gpus=())
    card = replace(bare, gpus=(Gpu(name="A100", memory_bytes=2**30, compute_capability=8.0),))
    machines = iter([card, bare, card, card])
    monkeypatch.setattr(sweeps, "look_at_machine", lambda: next(machines))
    assert swept(Runs(), RANKS[:1]) == 1
    assert swept(Runs(), RANKS[:1], "multirun_sweeps/one/b") == 1
    assert seen == [("gpu-hidden",), ()]


def test_ctrl_c_in_a_job_ends_hydras_sweep(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an exception Hydra would start the next job all the same."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    runs = Runs(job0=130)
    asked = ("method.rank=2,4", "tracking=none", "hydra.sweep.dir=swept")
    line = compose.CommandLine(overrides=asked, multirun=True)
    assert sweep(line, Sweep(resume=None, reuse=False), runs.verbs, Screen()) == 130
    assert runs.done == ["run 0"]


def test_ctrl_c_while_a_sweep_is_told_of_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(stopped: bool) -> int:
        raise KeyboardInterrupt

    assert sweeps.worked_through(lambda: 0, interrupted, SweepFolder(FOLDER)) == 130
    assert f"To continue: {program('factory')} -m sweep.resume={FOLDER}\n" in capsys.readouterr().err


def test_a_mistake_of_ours_closes_a_sweep_too() -> None:
    closed = list[bool]()
    with pytest.raises(ZeroDivisionError):
        sweeps.worked_through(lambda: 1 // 0, lambda stopped: closed.append(stopped) or 0, SweepFolder(FOLDER))
    assert closed == [False]


def test_plan_m_shows_every_job_and_runs_none(command: Callable[..., Any], here: Path) -> None:
    said = command("plan", "-m", "method=lora,galore", "stage.optimizer=muon", "plan.format=json")
    assert (said.code, said.rules) == (2, ["optimizer"])
    one, two = json.loads(said.out)["jobs"]
    assert one["plan"]["estimate"]["parameters"]["trainable"] == 2_442_240
    assert two["plan"] is None and [found["rule"] for found in two["refusals"]] == ["optimizer"]
    said = command("plan", "-m", "method.rank=range(2,6,2)", "hydra.sweep.dir=x")
    assert said.code == 0 and "2 jobs: 2 to run." in said.out
    assert command("plan", "-m", "seed=1,2", "plan.format=yaml").rules == ["plan-of-a-sweep"]
    assert command("plan", "-m", "seed=1,2", "plan.search=true").rules == ["plan-of-a-sweep"]
    assert command("plan", "sweep.reuse=true").rules == ["sweep-without-multirun"]
    assert not list(here.iterdir())


@pytest.mark.parametrize("width", [34, 40, 50, 60, 80, 120])
def test_what_differs_is_whole_and_what_is_not_shown_is_told(
    width: int, command: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = command("plan", "-m", "method=lora,galore", "hardware=cpu").out
    assert "method=lora" in out and "method=galore" in out and "…" not in out
    table, _, told = out.partition("Not shown for want of room:")
    for name in ("trainable", "memory", "steps", "training"):
        assert (f" {name} " in table.splitlines()[2]) != (name in told), name


def test_a_sweep_leaves_the_loggers_of_libraries_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's own way of being quiet is to switch off every logger there is, in the whole process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    library, level = logging.getLogger("some.library"), logging.getLogger().level
    line = compose.CommandLine(overrides=("seed=1,2", "tracking=none", "hydra.sweep.dir=swept"), multirun=True)
    assert sweep(line, Sweep(resume=None, reuse=False), Runs().verbs, Screen()) == 0
    assert not library.disabled and logging.getLogger().level == level


def test_jobs_are_those_that_hydra_hands_out(here: Path) -> None:
    """In number, order, overrides and folders."""
    subdir = "hydra.sweep.subdir='${hydra.job.override_dirname}'"
    line = compose.parse(["-m", "method=lora,full", subdir, "seed=range(1,3)"])
    found = handed_out.jobs(line, "x")
    assert isinstance(found, list)
    assert [job.overrides for job in found] == [
        (f"method={method}", f"seed={seed}") for method in ("lora", "full") for seed in (1, 2)
    ]
    assert [job.options["method"] for job in found] == ["lora", "lora", "full", "full"]
    assert len({job.run_dir for job in found}) == 4 and all(job.run_dir.startswith("x/") for job in found)


def test_a_jobs_number_is_a_value_as_with_hydra(here: Path) -> None:
    line = compose.parse(["-m", "seed=${hydra:job.num}", "method=lora,full"])
    found = handed_out.jobs(line, handed_out.sweep_folder(line)[0])
    assert isinstance(found, list) and [job.tree["seed"] for job in found] == [0, 1]


def test_jobs_in_folders_of_folders_are_told_apart_in_the_table(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    places = "hydra.sweep.subdir='seed_${seed}/rank_${method.rank}'"
    texts = ("seed=1,2", "method.rank=4,8", "tracking=none", "hydra.sweep.dir=swept", places)
    assert (
        sweep(
            compose.CommandLine(overrides=texts, multirun=True), Sweep(resume=None, reuse=False), Runs().verbs, Screen()
        )
        == 0
    )
    table = SweepFolder("swept").table.read_text()
    for name in ("seed_1/rank_4", "seed_1/rank_8", "seed_2/rank_4", "seed_2/rank_8"):
        assert f"| {name} |" in table


def test_a_sweep_is_not_written_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finished jobs would be refused ones in the table, and sweep.resume would know the new line alone."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def swept(text: str) -> int:
        line = compose.CommandLine(overrides=(text, "tracking=none", "hydra.sweep.dir=swept"), multirun=True)
        return sweep(line, Sweep(resume=None, reuse=False), Runs().verbs, Screen())

    assert swept("seed=1,2") == 0
    before = [path.read_text() for path in (SweepFolder("swept").record, SweepFolder("swept").table)]
    with pytest.raises(UserError, match=r"\[sweep-taken\] hydra.sweep.dir=swept: there is a sweep in it") as told:
        swept("seed=1,2,3")
    assert "-m sweep.resume=swept" in str(told.value)
    assert before == [path.read_text() for path in (SweepFolder("swept").record, SweepFolder("swept").table)]


def test_where_no_job_was_started_nothing_is_lost(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    SweepFolder("swept").path.mkdir()
    SweepFolder("swept").record.write_text("{}")
    line = compose.CommandLine(overrides=("seed=1,2", "tracking=none", "hydra.sweep.dir=swept"), multirun=True)
    assert sweep(line, Sweep(resume=None, reuse=False), Runs().verbs, Screen()) == 0


def test_a_sweep_of_the_same_second_goes_beside_the_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(train, "_of_jobs", lambda *_: Runs().verbs)
    name, common = handed_out.sweep_folder(LINE)
    monkeypatch.setattr(handed_out, "sweep_folder", lambda *_: (name, common))
    assert [train._sweep(LINE), train._sweep(LINE)] == [0, 0]
    assert (SweepFolder(name).table.is_file(), SweepFolder(f"{name}-2").table.is_file()) == (True, True)


def test_a_sweep_that_is_overtaken_takes_the_next_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that was started in the same second, and had its folder first."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(train, "_of_jobs", lambda *_: Runs().verbs)
    taken = iter(["one", "two"])
    monkeypatch.setattr(sweeps, "fresh", lambda _: next(taken))
    with RunFolder("one").claimed():
        assert train._sweep(LINE) == 0
    assert SweepFolder("two").table.is_file() and not SweepFolder("one").table.is_file()


@pytest.mark.parametrize("name", ["läufe", "one, two"])
def test_a_sweeps_folder_may_have_any_name(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    line = compose.CommandLine(overrides=("seed=1,2", "tracking=none", f"hydra.sweep.dir='{name}'"), multirun=True)
    assert sweep(line, Sweep(resume=None, reuse=False), Runs().verbs, Screen()) == 0
    assert SweepFolder(name).names() == ["0", "1"]


def test_a_job_may_lie_elsewhere(here: Path) -> None:
    line = compose.parse(["-m", "seed=1,2", f"hydra.sweep.subdir={here}/else/${{hydra.job.num}}"])
    found, known = sweeps.planned(line, compiled)
    assert known and [job.name for job in found] == [f"{here}/else/0", f"{here}/else/1"]


def test_a_list_in_a_jobs_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    modules = "method.target_modules=[q_proj]"
    (job,) = jobs.compiled(composed(["refused"], "x"), "x", compiled)
    Screen().print(jobs.Shown([replace(job, name=modules)]))
    assert capsys.readouterr().out.count(modules) == 2


def test_another_programs_file_is_no_sweep(here: Path) -> None:
    (here / "sweep.json").write_text('{"program": "train.py"}')
    with pytest.raises(UserError, match="sweep-missing"):
        sweep(compose.parse([]), Sweep(resume=str(here), reuse=False), Runs().verbs, Screen())


def test_a_sweeps_time_is_told_where_every_jobs_is(here: Path) -> None:
    known, other = jobs.compiled(composed(RANKS[:2], "x"), "x", compiled)
    assert known.plan is not None and "Training takes" not in jobs.summary([known, other])
    estimate = replace(known.plan.estimate, seconds=Span(low=10, high=20))
    timed = replace(known, plan=replace(known.plan, estimate=estimate))
    assert "2 to run. Training takes 20 to 40 s in all." in jobs.summary([timed, timed])
    assert "Training takes" not in jobs.summary([timed, other])
