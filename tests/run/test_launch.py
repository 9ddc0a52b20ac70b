"""Whole commands: exit codes, a run's files, the same numbers again, and every way that a run can be cut short."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import PATIENCE, Command, customized, metrics, steps, wait_for
from conftest import compiled

from factory.config.refusal import refuse
from factory.execute import __main__ as child_main
from factory.execute.report import ADVICE
from factory.run import launch
from factory.run.folder import MANIFEST, RunFolder, at_step
from factory.run.launch import Tail
from factory.run.screen import Screen
from factory.stopping import asking

STEPS = 60
SAME = (
    "tracking=none",
    "hardware=cpu",
    "precision=fp32",
    "evaluate.samples=0",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-3",
    "method.rank=4",
    "data.max_samples=40",
    "stage.save_steps=20",
)
FILES = {"plan.yaml", "report.json", "metrics.jsonl", "events.jsonl", "run.log", "model", "checkpoints", ".lock"} | {
    "evaluation"
}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def options(tiny_model: Path) -> tuple[str, ...]:
    return (*SAME, f"model.path={tiny_model}", f"stage.max_steps={STEPS}")


@pytest.fixture(scope="module")
def whole(where: Path, options: tuple[str, ...]) -> Path:
    Command(where, *options, "hydra.run.dir=whole").ends(0)
    return where / "whole"


def test_a_run_leaves_all_its_files(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    report = json.loads((whole / "report.json").read_text())
    assert report["status"] == "finished"
    assert {"parameters", "memory", "train", "data", "evaluate", "checks", "versions"} <= report.keys()
    assert all(check["passed"] for name, check in report["checks"].items() if name not in ADVICE), report["checks"]
    assert report["train"]["steps"] == STEPS == steps(whole)
    assert [line["step"] for line in metrics(whole)] == list(range(1, STEPS + 1))
    assert report["memory"]["peak_bytes"] > 0
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in (whole / "model").iterdir()
    }
    log = (whole / "run.log").read_text()
    assert f"step {STEPS:>5}" in log and "perplexity" in log


def test_a_finished_run_is_not_overwritten(
    whole: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert "[folder-taken]" in started(*options, "hydra.run.dir=whole").ends(2)
    assert "[resume-finished]" in started("resume", "whole").ends(2)
    assert "[folder-taken]" in started("train", "--from-plan", "whole/plan.yaml", "hydra.run.dir=whole").ends(2)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_plan_file_gives_the_same_numbers(whole: Path, where: Path, started: Callable[..., Command]) -> None:
    started("train", "--from-plan", "whole/plan.yaml", "hydra.run.dir=replayed").ends(0)
    assert metrics(where / "replayed") == metrics(whole)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (whole, where / "replayed"))
    assert (first["plan_digest"], first["evaluate"]) == (second["plan_digest"], second["evaluate"])


def test_an_interrupted_run_goes_on(
    whole: Path, where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    folder, same = where / "stopped", (*options, "hydra.run.dir=stopped")
    command = started(*same)
    wait_for(lambda: steps(folder) >= 3, 40)
    os.kill(command.child().pid, signal.SIGSTOP)  # so that it is still there while others try
    try:
        assert "[folder-in-use]" in started(*same, "stage.resume=auto").ends(2)
        assert "[folder-in-use]" in started("resume", "stopped").ends(2)
        command.process.send_signal(signal.SIGINT)
    finally:
        os.kill(command.child().pid, signal.SIGCONT)
    text = command.ends(130)
    done = steps(folder)
    assert 3 <= done < STEPS
    assert "factory resume stopped" in text
    saved = RunFolder(folder).checkpoint()
    assert saved is not None and saved.name == f"step-{done:06d}"
    assert json.loads((folder / "report.json").read_text())["status"] == "interrupted"
    assert f"Continuing from stopped/checkpoints/{saved.name}" in started("resume", "stopped").ends(0)
    assert metrics(folder) == metrics(whole)
    first, second = (json.loads((place / "report.json").read_text())["evaluate"] for place in (whole, folder))
    assert first == second


def test_killed_child_then_killed_parent(
    where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    folder, same = where / "killed", (*options, "stage.max_steps=100000", "hydra.run.dir=killed")
    command = started(*same)
    wait_for(lambda: RunFolder(folder).checkpoint(), PATIENCE)
    command.child().kill()
    text = command.ends(1)
    assert "[killed]" in text and "factory resume killed" in text
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "failed" and "[killed]" in report["error"]

    done = RunFolder(folder).checkpoint()
    assert done is not None
    command = started(*same, "stage.resume=auto")
    wait_for(lambda: RunFolder(folder).checkpoint() != done, PATIENCE)
    child = command.child()
    assert f"Continuing from killed/checkpoints/{done.name}" in " ".join(command.output.read_text().split())
    os.kill(child.pid, signal.SIGSTOP)  # so that it outlives its parent for as long as others try
    wait_for(lambda: child.status() == psutil.STATUS_STOPPED, PATIENCE)  # one of its threads ends it with its parent
    try:
        command.process.kill()
        command.process.wait(10)
        assert "[folder-in-use]" in started("resume", "killed").ends(2)
    finally:
        os.kill(child.pid, signal.SIGCONT)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, PATIENCE)
    assert [line["step"] for line in metrics(folder)] == list(range(1, steps(folder) + 1))


@pytest.mark.parametrize(
    ("done", "words"), [(3, "3 steps are lost"), (1, "1 step is lost"), (0, "Nothing was trained yet")]
)
def test_what_two_signals_lose_is_said(done: int, words: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, done + 1)))
    assert words in launch._unsaved(folder, "It was ended at once")


@pytest.mark.parametrize(
    ("steps", "begun", "told"),
    [
        (0, "train", "Nothing was trained yet."),
        (3, "train", "No checkpoint was saved: 3 steps are lost."),
        (0, "align", None),
    ],
)
def test_what_a_failure_leaves_is_said_of_the_run_that_failed(
    steps: int, begun: str, told: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the server of rewards does not answer the first step: there is no checkpoint to speak of."""
    plan, folder = compiled("hardware=cpu", training=False), RunFolder(here)
    folder.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)))
    folder.events.write_text(json.dumps({"event": "start", "name": begun}) + "\n")
    error = str(
        refuse(
            "reward-server", "stage.reward=http://127.0.0.1:9/", "it cannot be asked", because="it is", fix="change it"
        )
    )
    assert "checkpoint" not in error
    code = launch._told(plan, folder, 1, {"status": "failed", "error": error}, Screen())
    said = capsys.readouterr().out.splitlines()
    assert code == child_main.FAILED and said[0].startswith("[reward-server]")
    assert said[-1] == (told or error.splitlines()[-1])


@pytest.mark.parametrize(("action", "resumed"), [("stopped", False), ("skipped", True)])
def test_what_would_meet_a_bad_update_again_is_not_offered(
    action: str, resumed: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = compiled("hardware=cpu", training=False), RunFolder(here)
    saved = at_step(folder.checkpoints, 2)
    saved.mkdir(parents=True)
    (saved / MANIFEST).write_text('{"files": {}}')
    report = {"status": "failed", "error": "[not-finite] …", "bad_updates": {"first": [{"action": action}]}}
    launch._told(plan, folder, 1, report, Screen())
    said = capsys.readouterr().out
    assert "The last whole checkpoint is kept." in said and ("To continue" in said) == resumed


@pytest.mark.parametrize(
    ("begun", "said"), [("train", "Stopping after this step, and saving ("), ("load", "Stopping (")]
)
def test_a_step_is_ended_where_one_runs(begun: str, said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_text(json.dumps({"event": "start", "name": begun}) + "\n")
    assert said in launch._stopping(folder)


def test_a_signal_in_the_middle_of_a_line_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    """What it printed there would be a mistake: Python's files are written by one at a time."""
    with subprocess.Popen(["sleep", "60"]) as child, launch._forwarding(child) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        child.wait(10)
    assert asked == [signal.SIGTERM] and not any(capsys.readouterr())


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    "sent", [(signal.SIGHUP, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)]
)
def test_a_lost_terminal_never_ends_a_run_at_once(sent: tuple[signal.Signals, ...], tmp_path: Path) -> None:
    deaf = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(["bash", "-c", deaf], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        with launch._forwarding(child):
            for number in sent:
                os.kill(os.getpid(), number)
            assert child.stdout.readline() == b"asked\n" and child.poll() is None
            os.kill(os.getpid(), signal.SIGTERM)  # after another, or as the first where it was a hangup
            os.kill(os.getpid(), signal.SIGTERM)
            assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("nohup", [False, True])
def test_a_hangup_saves_unless_it_is_ignored(
    nohup: bool, where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    folder = where / f"hung-up-{nohup}"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # which a command inherits
    try:
        command = started(*options, f"hydra.run.dir={folder.name}")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: steps(folder) >= 3, PATIENCE)
    for process in (*([command.child()] if nohup else []), command.process):
        process.send_signal(signal.SIGHUP)
    text = command.ends(0 if nohup else 130)
    saved = RunFolder(folder).checkpoint()
    assert saved is not None and saved.name == f"step-{steps(folder):06d}" and (steps(folder) == STEPS) == nohup
    assert (f"factory resume {folder.name}" in text) != nohup


@pytest.mark.slow
def test_a_bug_leaves_its_traceback_in_the_log(
    where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    broken = "import factory.steps.align as module; module.align = lambda run, **_: [][run.plan.settings.seed]"
    command = started(*options, "hydra.run.dir=bug", **customized(where, "broken", broken))
    text = command.ends(1)
    assert "[crashed] IndexError: list index out of range the traceback is in bug/run.log" in text
    log = (where / "bug" / "run.log").read_text()
    assert "Traceback (most recent call last)" in log and "module.align = lambda" not in text
    assert json.loads((where / "bug" / "report.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_before_the_child_listens(
    times: int, where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if times == 2 else ""
    deaf = f"{ignores}import time; time.sleep(60)"
    environment = customized(where, f"deaf-{times}", deaf)
    command = started(*options, f"hydra.run.dir=early-{times}", **environment)
    child = command.child()
    time.sleep(1)
    for _ in range(times):
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    text = command.ends(130)
    assert f"factory resume early-{times}" in text and "memory" not in text.rpartition("Stopping")[2]
    assert not child.is_running()
    assert json.loads((where / f"early-{times}" / "report.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_asked_to_stop_when_there_is_nothing_left_to_do(
    where: Path, options: tuple[str, ...], started: Callable[..., Command]
) -> None:
    """A sweep would go on to its next job."""
    deaf = (
        "import signal; given = signal.signal; given(signal.SIGTERM, signal.SIG_IGN); "
        "signal.signal = lambda number, ask: None if number == signal.SIGTERM else given(number, ask)"
    )
    command = started(*options, "hydra.run.dir=over", **customized(where, "late", deaf))
    wait_for(lambda: steps(where / "over") >= 3, PATIENCE)
    command.process.send_signal(signal.SIGINT)
    assert "Interrupted. The run in over has finished." in command.ends(130)
    assert RunFolder(where / "over").status() == "finished" and steps(where / "over") == STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("moment", "words", "code"),
    [
        ("atexit.register(kill)", ("explain", "seed"), 0),
        ("late = type('', (), {'__del__': kill})()", ("explain", "x"), 2),
    ],
)
def test_a_signal_when_all_is_done_changes_no_exit_code(
    number: int, moment: str, words: tuple[str, ...], code: int, where: Path, started: Callable[..., Command]
) -> None:
    folder = where / f"late-{number}-{code}"
    folder.mkdir()
    last = f"import atexit, os\nkill = lambda *_, kill=os.kill, own=os.getpid(): kill(own, {int(number)})\n{moment}\n"
    (folder / "sitecustomize.py").write_text(last)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    assert started(*words, PYTHONPATH=path).ends(code)


def test_a_bug_in_the_child_is_told_in_its_report(
    here: Path, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    execute(*SAME, "stage.max_steps=1", "evaluate.perplexity=false")

    def fails(*_: Any) -> None:
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr("factory.steps.train.save_model", fails)
    monkeypatch.setattr(child_main, "end_with_parent", lambda: None)
    handlers = {number: signal.getsignal(number) for number in asking()}
    try:
        assert child_main.main(["run"]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    report = json.loads(Path("run/report.json").read_text())
    assert report["status"] == "failed"
    assert report["error"] == "[crashed] RuntimeError: a bug\n  the traceback is in run/run.log"
    assert "Traceback" in capfd.readouterr().err  # which is run.log in a child


def test_the_tokens_in_the_loss_are_told_from_all_of_a_rows() -> None:
    """Those that went through the steps, prompts too, are the check's (tests/steps/test_accounts.py)."""
    counts = {"used": 36, "trained_tokens": 2164, "tokens": 3687, "dropped": {"it is empty": 2}}
    assert launch._rows(counts) == "36 rows (3,687 tokens, 2,164 of them in the loss), 2 dropped"


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.lines() == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n\n')
    assert tail.lines() == [{"step": 2}]
    assert tail.lines() == []
    with path.open("a") as file:
        file.write('{"step": 2, "lo{"step": 3}\n{"step": 4}\n')
    assert tail.lines() == [{"step": 4}]  # the one before was cut by a full disk, and the next joined to it


def test_metrics_are_forgotten_once(tmp_path: Path) -> None:
    """A follower must not see a file shrink: what is right already is not written again."""
    folder = RunFolder(tmp_path)
    folder.forget_metrics_after(0)
    assert not folder.metrics.exists()
    folder.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    folder.forget_metrics_after(2)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    before = folder.metrics.stat()
    folder.forget_metrics_after(2)
    after = folder.metrics.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    folder.forget_metrics_after(0)
    assert folder.metrics.read_text() == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("what():  std::bad_alloc", "what():  std::bad_alloc"),
        ("cannot allocate memory for thread-local data: ABORT", "cannot allocate memory for thread-local data: ABORT"),
        ("libthreads.so: cannot allocate memory in static TLS block", None),  # of which there may be plenty
        ("a bug", None),
    ],
)
def test_a_child_that_a_library_ended_for_memory(words: str, told: str | None, tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(f"importing the libraries\n  {words}\nthe end\n")
    assert launch._of_memory(tmp_path / "run.log") == told
    assert launch._of_memory(tmp_path / "none.log") is None


def test_how_old_a_process_is_is_told_by_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    started = psutil.Process().create_time()
    wanted = time.time() - started
    monkeypatch.setattr(time, "time", lambda: started - 1e6)
    assert launch.age_of(os.getpid()) == pytest.approx(wanted, abs=2)


def test_what_a_run_goes_back_from_is_told(tmp_path: Path) -> None:
    """Of its own folder alone: what lies in another stays there."""
    folder = RunFolder(tmp_path / "run")
    places = [folder.checkpoints / f"step-{number:06}" for number in (2, 4, 6)]
    for place in places:
        place.mkdir(parents=True)
        (place / MANIFEST).write_text('{"files": {}}')
    told = [launch._gone_back_from(folder, place) for place in places]
    assert [words.split(" of ")[0] for words in told] == ["; 2 checkpoints", "; 1 checkpoint", ""]
    assert launch._gone_back_from(folder, tmp_path / "other" / "checkpoints" / "a copy") == ""


def test_what_was_started_from_another_folder_goes_on_from_there(
    tiny_model: Path, here: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while its weights load: nothing of its own is saved."""
    options, asked = (*SAME, f"model.path={tiny_model}"), list[Path | None]()
    start = at_step(RunFolder("old").checkpoints, 500)
    start.mkdir(parents=True)
    (start / "state.json").write_text('{"step": 500}')
    manifest = {"files": {}, "plan_digest": compiled(*options).digest()}
    (start / MANIFEST).write_text(json.dumps(manifest))

    def interrupted(_plan: Any, _folder: RunFolder, resume_from: Path | None, *_: Any) -> None:
        asked.append(resume_from)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_follow", interrupted)
    assert command(*options, f"stage.resume={start}", "hydra.run.dir=new").code == 130
    again = command("resume", "new")
    assert again.code == 130 and f"Continuing from {start.resolve()}" in again.out
    assert command(*options, "stage.resume=auto", "hydra.run.dir=new").code == 130
    assert asked == [start, start.resolve(), start.resolve()]

    (start / MANIFEST).write_text(json.dumps({**manifest, "plan_digest": "of another"}))
    assert "another run has saved it since" in command("resume", "new").err
    start.rename(here / "elsewhere")
    gone = command("resume", "new")
    assert (gone.code, gone.rules) == (2, ["start-missing"]) and f"{start.resolve()}: it is gone" in gone.err
    assert len(asked) == 3


def test_a_step_is_a_line_however_wide_the_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    line = {"step": 12, "loss": None, "learning_rate": 1e-4, "tokens_per_second": 231.0, "memory": 2**31}
    watched = {"reward": 0.5, "kl": 0.01}
    measured = {f"eval_{name}": 0.5 for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracy")}
    launch.show({**line, **watched, **measured}, Screen())
    step, held_out = capsys.readouterr().out.splitlines()
    assert step.startswith("step    12") and step.endswith("2.00 GiB") and held_out.endswith("rewards/accuracy 0.5000")
