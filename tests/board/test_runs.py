"""Runs outlive the page: they are found, followed, stopped and gone on with by their folders."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.board.planned import Planner
from factory.board.runs import Runs
from factory.board.votes import Votes
from factory.plan import to_yaml
from factory.run.folder import RunFolder

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
    content = to_yaml(replace(plan, verb="evaluate", overrides=(*given, "hydra.run.dir=outputs/one")))
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
