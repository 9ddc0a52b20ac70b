"""Runs outlive the page: they are found, followed, stopped and gone on with by their folders."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.board.planned import Planner
from factory.board.runs import Runs, _Processes
from factory.board.votes import Votes
from factory.config.refusal import UserError, refuse
from factory.plan.plan import to_yaml
from factory.run.folder import OUTPUTS, SWEEPS, RunFolder, runs_here
from factory.run.swept import SweepFolder

SHORT = ("stage.max_steps=4", "stage.logging_steps=1", "tracking=none", "evaluate.samples=0", "data.max_length=256",
         "data.max_samples=20", "evaluate.perplexity=false", "stage.batch_size=1")  # fmt: skip


def _until(runs: Runs, folder: str, states: set[str], seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs.next()
        if (state := runs.state(folder)) in states:
            return state
        time.sleep(0.2)
    raise AssertionError(f"{runs.state(folder)} after {seconds} s: {runs.log(folder)}")


def _note(runs: Runs, folder: str, **noted: object) -> None:
    runs._asked_file(folder).write_text(json.dumps(runs._entry(folder) | noted), encoding="utf-8")


def test_a_run_is_queued_started_and_found_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Runs(Path("outputs"), Path("multirun_sweeps"))
    words = (f"model.path={tiny_model}", *SHORT)
    first, refused, third = runs.start(words), runs.start(("method.rank=x",)), runs.start(words)
    assert len({first, refused, third}) == 3
    assert [runs.state(folder) for folder in (refused, third)] == ["queued", "queued"]
    assert runs.stop(third) and runs.state(third) == "cancelled"  # it never began
    assert _until(runs, first, {"finished", "failed", "refused"}) == "finished"
    assert [line["step"] for line in runs.metrics(first)] == [1, 2, 3, 4]
    assert runs.progress(first)["train"] == (4, 4)
    assert runs.report(first) is not None and "saved" in runs.log(first)
    assert _until(runs, refused, {"refused"}) == "refused" and "bad-value" in runs.log(refused)
    again = Runs(Path("outputs"), Path("multirun_sweeps"))  # a server that was started anew
    found = {each.folder: each for each in again.all()}
    assert found[first].state == "finished" and found[first].overrides == words
    assert found[refused].state == "refused" and again.log(refused)
    named = Path("outputs/mine")  # as hydra.run.dir=outputs/mine has it
    Path(first).rename(named)
    assert str(named) in {each.folder for each in Runs(Path("outputs"), Path("multirun_sweeps")).all()}


def test_a_run_is_stopped_with_a_checkpoint_and_goes_on(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Runs(Path("outputs"), Path("multirun_sweeps"))
    folder = runs.start((f"model.path={tiny_model}", *SHORT, "stage.max_steps=3000", "stage.save_steps=null"))
    deadline = time.monotonic() + 240
    while len(runs.metrics(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs.state(folder) == "running"
    other = Runs(Path("outputs"), Path("multirun_sweeps"))  # who did not start it can stop it
    assert other.state(folder) == "running" and other.stop(folder)
    assert _until(runs, folder, {"interrupted", "failed", "finished"}) == "interrupted"
    step = runs.metrics(folder)[-1]["step"]
    runs.resume(folder)
    deadline = time.monotonic() + 240
    while runs.metrics(folder)[-1]["step"] <= step and time.monotonic() < deadline:
        runs.next()  # the command that was stopped may still be ending
        time.sleep(0.2)
    assert runs.metrics(folder)[-1]["step"] > step, runs._printed(folder).read_text()
    assert runs.stop(folder)
    _until(runs, folder, {"interrupted"})


def test_a_look_lists_the_processes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many entries there are of which a folder alone says nothing: refused ones stay for ever."""
    monkeypatch.setattr(Runs, "next", lambda _: None)
    runs, looks = Runs(tmp_path / "outputs", tmp_path / "sweeps"), list[int]()
    folders = [runs.start((f"seed={number}",)) for number in range(4)]
    runs._write_queue([])
    runs._printed(folders[1]).write_text("[bad-value] ...", encoding="utf-8")
    _note(runs, folders[1], code=2)
    line = ["python", "-m", "factory", "train", f"hydra.run.dir={folders[2]}"]

    def listed(*_: object) -> Iterator[SimpleNamespace]:
        looks.append(1)
        yield SimpleNamespace(pid=7, info={"cmdline": line, "ppid": 1, "cwd": str(tmp_path)})

    monkeypatch.setattr("psutil.process_iter", listed)
    states = {each.folder: each.state for each in runs.all()}
    assert [states[folder] for folder in folders] == ["cancelled", "refused", "starting", "cancelled"]
    assert len(looks) == 1
    runs._write_queue([])  # so that it is looked anew
    line.clear()
    assert {each.folder: each.state for each in runs.all()}[folders[2]] == "cancelled" and len(looks) == 2


def test_overrides_are_listed_as_they_were_given(tmp_path: Path) -> None:
    plan = Planner((tmp_path,))(()).plan
    assert plan is not None
    tokens = ",".join(f"'token {number}'" for number in range(30))  # longer than a line of the file
    given = ("data.path='my rows.jsonl'", "stage.reward='a: b'", f"model.new_tokens=[{tokens}]", "tags={a: 'it\\'s'}")
    (tmp_path / "outputs/one").mkdir(parents=True)
    content = to_yaml(plan.with_settings(verb="evaluate", overrides=(*given, "hydra.run.dir=outputs/one")))
    (tmp_path / "outputs/one/plan.yaml").write_text(content, encoding="utf-8")
    (found,) = Runs(tmp_path / "outputs", tmp_path / "sweeps").all()
    assert (found.verb, found.overrides) == ("evaluate", given)


def test_what_is_left_is_told_by_the_steps_since_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped in the evening and gone on with in the morning is no slower for the night."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    from factory.board.said import words
    from factory.board.tabs.train import _state

    runs, folder, now = Runs(tmp_path, tmp_path), RunFolder(tmp_path / "run"), time.time()
    folder.path.mkdir()
    steps = ((1, now - 40_000), (2, now - 39_990), (3, now - 10), (4, now))
    folder.metrics.write_text("".join(f"{json.dumps({'step': step, 'time': at})}\n" for step, at in steps))
    events = (
        {"event": "training", "steps": 10, "done": 2},
        {"event": "progress", "name": "train", "done": 4, "total": 10},
    )
    folder.events.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    monkeypatch.setattr(Runs, "state", lambda *_: "running")
    assert "about 60 s left" in _state(runs, str(folder.path), words("en"))


def test_curves_of_the_held_out_rows_and_of_rewards() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    from factory.board.said import words
    from factory.board.tabs.train import _drawn, _plot

    lines = [
        {"step": 1, "loss": 4.0, "eval_loss": 5.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 2.0, "eval_loss": 3.0},
    ]
    drawn = _plot(lines, "loss", "loss", 0.5, words("en"))
    points = drawn["value"].to_records(index=False).tolist()
    smoothed = (0.25 * 4 + 0.5 * 2) / 0.75  # of two values, the newer with twice the older's weight
    assert points == [(1, 4.0, "training"), (3, pytest.approx(smoothed), "training"), (1, 5.0, "held out"),
                      (3, 3.0, "held out")]  # fmt: skip
    assert (drawn["color"], drawn["visible"]) == ("Rows", True)
    without = [{"step": 1, "memory": 2**30}]
    drawn = _plot(without, "memory", "GiB", 0.5, words("en"))
    assert drawn["color"] is None and drawn["value"]["GiB"].tolist() == [1.0]
    assert not _plot(without, "reward", "reward", 0.0, words("en"))["visible"]
    assert _plot([{"step": 1, "reward": 0.5}], "reward", "reward", 0.0, words("en"))["visible"]
    assert [drawn["visible"] for drawn in _drawn([], 0.0, words("en"))] == [True, True, True, True, False]
    for drawn in _drawn([], 0.0, words("en")):  # numbers from the start, or the page takes what follows for texts
        assert [str(kind) for kind in drawn["value"].dtypes[:2]] == ["float64", "float64"]


def test_votes_are_counted_between_two(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.jsonl")
    for vote, names in (("left", ["a", "b"]), ("left", ["b", "a"]), ("tie", ["a", "b"]), ("right", ["a", "b"]),
                        ("left", ["a", "c"])):  # fmt: skip
        votes.add(vote, names, [])
    assert votes.counted(["a", "b"]) == {"a": (1.5, 4), "b": (2.5, 4)}


# --- sweeps


def _sweep(folder: Path, *codes: int) -> str:
    """Of two jobs, of which these have ended so; a job that was refused leaves no folder."""
    job = {"overrides": [], "digest": None}
    record = {"overrides": [], "config_dirs": [], "parent_run": None}
    sweep = SweepFolder(folder)
    folder.mkdir(parents=True)
    sweep.record.write_text(json.dumps({**record, "jobs": [{"name": "0", **job}, {"name": "1", **job}]}))
    sweep.outcomes.write_text("".join(f"{json.dumps({'job': f'{n}', 'code': code})}\n" for n, code in enumerate(codes)))
    done = RunFolder(folder / "0")
    done.path.mkdir()
    done.plan.touch()
    done.report.write_text('{"status": "finished"}')
    return str(folder)


def test_a_sweep_is_finished_when_all_its_jobs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a folder of them: a job that was refused, or has not begun, has none."""
    monkeypatch.setattr(Runs, "next", lambda _: None)
    runs, found = Runs(tmp_path / "outputs", tmp_path / "sweeps"), dict[tuple[int, ...], tuple[str, bool]]()
    for codes in ((0, 0), (0, 2), (0, 1), (0, 130), (0,)):
        folder = _sweep(tmp_path / "sweeps" / "a day" / "-".join(map(str, codes)), *codes)
        found[codes] = runs.state(folder), runs.resume(folder)
    assert found == {
        (0, 0): ("finished", False),
        (0, 2): ("failed", True),
        (0, 1): ("failed", True),
        (0, 130): ("interrupted", True),
        (0,): ("interrupted", True),
    }
    assert {each["words"][0] for each in runs._queue()} == {"-m"}


# --- whose process it is


def _process(pid: int, cwd: Path | None, *line: str) -> SimpleNamespace:
    return SimpleNamespace(
        pid=pid, info={"cmdline": ["python", "-m", *line], "ppid": pid + 100, "cwd": cwd and str(cwd)}
    )


def test_a_run_of_another_project_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have the same name from where it stands."""
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    monkeypatch.chdir(here)
    lines = (
        ("factory", "train", "hydra.run.dir=outputs/mine"),
        ("factory", "-m", "hydra.sweep.dir=outputs/mine"),
        ("factory", "-m", "sweep.resume='outputs/mine'"),
        ("factory", "resume", "outputs/mine"),
        ("factory", "resume", "./outputs/../outputs/mine"),
        ("factory.execute", "outputs/mine"),
    )
    for line in lines:
        process = _process(7, here, *line)
        leads = 107 if "factory.execute" in line else 7
        others = [_process(1, other, *line), _process(2, None, *line), _process(3, here, "another", *line[1:])]
        listed = [*others, process]
        monkeypatch.setattr("psutil.process_iter", lambda _, listed=listed: listed)
        assert _Processes().of_run("outputs/mine") == leads, line
        listed.remove(process)
        assert _Processes().of_run("outputs/mine") is None, line


def test_what_cannot_be_stopped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, run, killed = Runs(tmp_path, tmp_path / "sweeps"), RunFolder(tmp_path / "run"), list[int]()

    def kill(process: int, _: int) -> None:
        killed.append(process)
        raise errors.pop()

    monkeypatch.setattr("os.kill", kill)
    monkeypatch.setattr("psutil.process_iter", lambda _: [_process(7, None, "factory", "resume", str(run.path))])
    errors: list[OSError] = [PermissionError(), ProcessLookupError()]
    assert not runs.stop(str(run.path))  # it ended meanwhile
    with pytest.raises(UserError, match="board-stop"):
        runs.stop(str(run.path))
    assert killed == [7, 7]
    monkeypatch.setattr("psutil.process_iter", lambda _: [])
    assert not runs.stop(str(run.path))
    monkeypatch.setattr("factory.board.runs.is_held", lambda _: True)
    with pytest.raises(UserError, match="board-stop"):  # "not running" would be wrong
        runs.stop(str(run.path))


# --- the queue


def test_what_cannot_be_started_stays_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is out of it before it starts: a server that is killed in between must not have it started twice."""
    runs, waiting = Runs(tmp_path / "outputs", tmp_path / "sweeps"), list[int]()
    with monkeypatch.context() as held:
        held.setattr(Runs, "next", lambda _: None)
        first, second = runs.start(("seed=1",)), runs.start(("seed=2",))

    def spawned(*_: object, **__: object) -> None:
        waiting.append(len(runs._queue()))
        raise OSError("there is no more memory")

    monkeypatch.setattr("factory.board.runs.spawned", spawned)
    with pytest.raises(OSError, match="no more memory"):
        runs.next()
    assert waiting == [1] and [each["folder"] for each in runs._queue()] == [first, second]
    monkeypatch.setattr("factory.board.runs.spawned", lambda *_, **__: SimpleNamespace(poll=lambda: None))
    runs.next()
    assert [each["folder"] for each in runs._queue()] == [second]


def test_a_full_disk_does_not_end_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError("no space left")
    turns: list[BaseException] = [
        full,
        full,
        refuse("cannot-write", "path=x", "it is full", because="it is", fix="change it"),
        SystemExit(),
    ]

    def following(_: Runs) -> None:
        raise turns.pop(0)

    monkeypatch.setattr(threading, "Thread", lambda target, daemon: SimpleNamespace(start=target))
    monkeypatch.setattr("factory.board.runs._POLL", 0.001)
    monkeypatch.setattr(Runs, "next", following)
    with pytest.raises(SystemExit):
        Runs(tmp_path / "outputs", tmp_path / "sweeps").keep_going()
    told = capsys.readouterr().err
    assert told.count("no space left") == 1 and "[cannot-write]" in told


# --- what is not there


def test_a_run_whose_folder_was_removed_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what never had one is said to be refused only where it was."""
    runs, codes = Runs(tmp_path / "outputs", tmp_path / "sweeps"), list[int | None]()

    def spawned(_: list[str], printed: Path, **__: bool) -> SimpleNamespace:
        printed.write_text("printed")
        own = len(codes)
        codes.append(None)
        return SimpleNamespace(poll=lambda: codes[own])

    monkeypatch.setattr("factory.board.runs.spawned", spawned)
    monkeypatch.setattr("psutil.process_iter", lambda _: [])
    states, texts = dict[int, str](), dict[int, str]()
    for number in (2, 1, 130, 0):
        folder = runs.start((f"seed={number}",))
        if number == 0:
            Path(folder).mkdir(parents=True)
        codes[-1] = number
        runs.next()
        states[number], texts[number] = runs.state(folder), runs.refusal(folder)
    assert {number: states[number] for number in (2, 1, 130)} == {2: "refused", 1: "failed", 130: "cancelled"}
    assert {number: texts[number] for number in (2, 1, 130)} == {2: "printed", 1: "printed", 130: ""}
    assert not any(runs.resume(each.folder) for each in runs.all())  # there is nothing that could go on
    for there in (runs, Runs(tmp_path / "outputs", tmp_path / "sweeps")):  # and a server that was started anew
        Path(folder).mkdir(parents=True, exist_ok=True)
        assert folder in {each.folder for each in there._found()}
        Path(folder).rmdir()
        assert sorted(each.state for each in there._found()) == ["cancelled", "failed", "refused"]


def test_a_folder_that_goes_while_it_is_looked_at_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.board.runs.runs_in", lambda *_: [tmp_path / "gone"])
    monkeypatch.setattr("psutil.process_iter", lambda _: [])
    assert Runs(tmp_path / "outputs", tmp_path / "sweeps").all() == []


def test_runs_are_found_as_deep_as_everywhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"outputs/a", "outputs/a/b", "outputs/a/b/c", "multirun_sweeps/a/0", "multirun_sweeps/a/b/c/0"}
    uploaded, inside = "outputs/.board/uploads/x", "outputs/a/b/c/d"
    for place in (*places, uploaded, inside):
        Path(place).mkdir(parents=True, exist_ok=True)
        (Path(place) / "plan.yaml").touch()
    monkeypatch.setattr("psutil.process_iter", lambda _: [])
    assert {each.folder for each in Runs(OUTPUTS, SWEEPS).all()} == {str(each) for each in runs_here()} == places
