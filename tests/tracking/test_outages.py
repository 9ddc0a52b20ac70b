"""A lost server neither stops a run nor loses a record: what did not arrive is known, and sent later, once."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from conftest import Said
from followed import LOSSES, Memory, in_memory, lines, more, run

from factory.execute.report import as_json
from factory.ranks import outer
from factory.run import launch
from factory.run.screen import Screen
from factory.tracking import delivery, ledger, tracker
from factory.tracking.delivery import Delivery
from factory.tracking.tracker import Tracker

URI = "http://lost.example:5000"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    for name, seconds in (("_EVERY", 0.02), ("_FIRST_PAUSE", 0.02), ("_AGAIN", 0.2), ("_PATIENCE", 1.0)):
        monkeypatch.setattr(tracker, name, seconds)
    return in_memory(monkeypatch)


def steps(memory: type[Memory]) -> list[int]:
    return [step for step, _, _ in memory.got]


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_comes_back_gets_all_of_it(tmp_path: Path, memory: type[Memory]) -> None:
    plan, folder, report = run(tmp_path / "run", URI)
    following = Tracker(plan, folder)
    following.wake()
    until(lambda: steps(memory) == [1, 2, 3, 4])
    assert following.news() is None
    memory.lost = ConnectionError("https://me:hunter2@host is gone\nmore")
    more(folder, 5, 6)
    until(lambda: following.problem)
    told = following.news()
    assert told and "ConnectionError" in told and "more" not in told and "hunter2" not in told
    assert following.news() is None  # told once
    memory.lost = None
    until(lambda: following.problem is None)
    assert "answers again" in str(following.news())
    more(folder, 7)
    assert following.finish(report) == {"tool": "mlflow", "uri": URI, "run_id": "a run", "sent": 9, "unsent": 0}
    assert steps(memory) == [1, 2, 3, 4, 5, 6, 7]
    (sent,) = memory.reports
    assert sent is not None and sent["tracking"] == {
        "tool": "mlflow",
        "uri": URI,
        "run_id": "a run",
        "sent": 9,
        "unsent": 0,
    }
    assert memory.described == 1


@pytest.mark.parametrize(("moment", "sent"), [("clean_file", False), ("_told", True)])
def test_a_run_that_is_interrupted_at_its_end_says_what_was_not_sent(
    moment: str,
    sent: bool,
    tmp_path: Path,
    memory: type[Memory],
    command: Callable[..., Said],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is finished, and its tool would say for ever that it runs."""
    plan, folder, report = run(tmp_path / "run", URI)
    kept = folder.metrics.read_text()

    def trained(*_: Any) -> tuple[int, Tracker, launch.Seen]:
        folder.metrics.write_text(kept)
        folder.report.write_text(as_json(report))
        return 0, Tracker(plan, folder), launch.Seen()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_follow", trained)
    monkeypatch.setattr(launch, moment, interrupted)
    assert launch.launch(plan, folder, None, Screen(), None) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert f"Interrupted. The run in {folder.path} is finished." in said
    assert len(memory.reports) == sent
    assert ("did not get 6 of 6 records (interrupted" in said, f"track {folder.path}" in said) == (not sent, not sent)
    assert command("track", str(folder.path)).code == 0
    assert len(memory.reports) == 1


@pytest.mark.parametrize("accepts", [0, 1, 2])
def test_what_is_missing_is_counted_told_and_sent_later(
    accepts: int,
    tmp_path: Path,
    memory: type[Memory],
    command: Callable[..., Said],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "_BATCH", 9)  # a line
    plan, folder, report = run(tmp_path / "run", URI)
    memory.accepts = accepts
    following = Tracker(plan, folder)
    assert launch._finish(plan, folder, 0, following, Screen(), launch.Seen(), None) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"did not get {5 - accepts} of 6 records (ConnectionError: gone)" in said
    assert f"track {folder.path}" in said
    told = json.loads(folder.report.read_text())
    assert told == report | {"tracking": told["tracking"]}
    assert (told["tracking"]["sent"], told["tracking"]["unsent"]) == (1 + accepts, 5 - accepts)
    assert steps(memory) == [1, 2][:accepts]

    memory.accepts = memory.lost = None
    first = command("track", str(folder.path))
    assert (first.code, first.err) == (0, "") and f"{5 - accepts} records sent" in first.out
    assert steps(memory) == [1, 2, 3, 4]
    assert (memory.described, len(memory.reports)) == (1, 1)
    assert json.loads(folder.report.read_text())["tracking"]["unsent"] == 0
    memory.lost = AssertionError("asked for nothing")
    again = command("track", str(folder.path))
    assert again.code == 0 and "has all 6 records already" in again.out


def test_a_server_that_hangs_holds_up_no_end(
    tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder, report = run(tmp_path / "run", URI)
    monkeypatch.setattr(memory, "flush", lambda self: time.sleep(60))
    start = time.monotonic()
    told = Tracker(plan, folder).finish(report)
    assert time.monotonic() - start < 5
    assert told is not None and "no answer within" in told["problem"] and told["unsent"] == 5


@pytest.mark.parametrize(("mode", "unsent"), [("offline", 0), ("online", 5)])
def test_files_are_waited_for_longer_than_servers(
    mode: str, unsent: int, tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's folder is one, however long its own process takes to start on a busy machine."""
    monkeypatch.setitem(delivery.TOOLS, "wandb", delivery.TOOLS["mlflow"])
    monkeypatch.setattr(tracker, "_PATIENCE", 0.2)
    usual = memory.flush
    monkeypatch.setattr(memory, "flush", lambda self: (time.sleep(1), usual(self)))
    plan, folder, report = run(tmp_path / "run", None, tool="wandb", mode=mode)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == unsent


def test_a_resumed_run_sends_what_the_attempt_before_could_not(
    tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not again what it could, though those steps are computed and written anew, at another time."""
    monkeypatch.setattr(delivery, "_BATCH", 9)  # a line
    plan, folder, report = run(tmp_path / "run", URI)
    memory.accepts = 3
    interrupted = Tracker(plan, folder)
    assert interrupted.finish({**report, "status": "interrupted"})
    assert steps(memory) == [1, 2, 3] and not memory.reports
    memory.accepts = memory.lost = None
    folder.forget_metrics_after(2)
    template = lines(folder)[-1]
    with folder.metrics.open("a") as file:
        file.writelines(json.dumps({**template, "step": step, "time": 1.8e9}) + "\n" for step in (3, 4, 5))
    resumed = Tracker(plan, folder)
    told = resumed.finish(report)
    assert told is not None and told["unsent"] == 0
    assert steps(memory) == [1, 2, 3, 4, 5]
    assert len(memory.reports) == 1


def test_what_arrived_and_was_not_noted_is_not_sent_again(tmp_path: Path, memory: type[Memory]) -> None:
    """A process that is killed in between leaves an older ledger."""
    plan, folder, report = run(tmp_path / "run", URI)
    book = ledger.of(plan.settings.tracking, folder)
    Delivery(plan, folder, book).send()
    book.step = 1
    book.write(folder)
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).finish(report)
    assert steps(memory) == [1, 2, 3, 4]


def test_what_was_read_before_the_tool_could_be_opened_is_kept(tmp_path: Path, memory: type[Memory]) -> None:
    """Later steps would say that it had arrived."""
    plan, folder, _ = run(tmp_path / "run", URI)
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).send()
    more(folder, 5, 6)
    resumed = Delivery(plan, folder, ledger.of(plan.settings.tracking, folder))
    memory.lost = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        resumed.send()
    memory.lost = None
    more(folder, 7)
    resumed.send()
    assert steps(memory) == [1, 2, 3, 4, 5, 6, 7]


def test_a_long_outage_is_read_in_parts(tmp_path: Path, memory: type[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_PART", 1000)
    plan, folder, report = run(tmp_path / "run", URI)
    more(folder, *range(5, 60))
    with folder.metrics.open("a") as file:
        file.write('{"step": 60, "lo')  # it is being written
    with folder.system.open("w") as file:
        file.writelines(json.dumps({"time": 1.7e9, "values": {"system/cpu": at}}) + "\n" for at in range(40))
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).finish(report)
    assert [step for step, _, values in memory.got if "loss" in values] == list(range(1, 60))
    samples = [(step, values) for step, _, values in memory.got if "loss" not in values]
    assert samples == [(at, {"system/cpu": at}) for at in range(40)]


def test_another_address_is_another_place(tmp_path: Path, memory: type[Memory], command: Callable[..., Said]) -> None:
    _, folder, _ = run(tmp_path / "run", None)
    refused = command("track", str(folder.path))
    assert (refused.code, refused.rules) == (2, ["track-nowhere"])
    there = command("track", str(folder.path), f"tracking.uri={URI}", "tracking.experiment=mine")
    assert there.code == 0 and "6 records sent" in there.out
    other = command("track", str(folder.path), "tracking.uri=http://other.example")
    assert other.code == 0 and "6 records sent" in other.out
    assert len(memory.got) == 2 * len(LOSSES)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ((), "track-what"),
        (("a", "b"), "track-what"),
        (("empty",), "track-what"),
        (("run", "stage.max_steps=3"), "track-what"),
        (("run", "tracking.uri=./mlruns"), "tracking"),
        (("run", "tracking.url=http://x"), "unknown-key"),
        (("run", "tracking.uri=http://me:hunter2@host"), "secret-in-settings"),
        (("run", "tracking.parent_run=x"), "track-what"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    words: tuple[str, ...], rule: str, memory: type[Memory], here: Path, command: Callable[..., Said]
) -> None:
    (here / "empty").mkdir()
    run(here / "run", URI)
    said = command("track", *words)
    assert (said.code, said.rules) == (2, [rule])
    assert not memory.got and "hunter2" not in said.err


def test_a_plan_is_not_replayed_with_a_login_in_its_address(
    memory: type[Memory], here: Path, command: Callable[..., Said]
) -> None:
    run(here / "run", URI)
    said = command("train", "--from-plan", "run/plan.yaml", "tracking.uri=http://me:hunter2@host", "hydra.run.dir=new")
    assert (said.code, said.rules) == (2, ["secret-in-settings"])
    assert "hunter2" not in said.err and not (here / "new").exists()


def test_a_run_that_goes_on_is_left_to_itself(
    tmp_path: Path, memory: type[Memory], command: Callable[..., Said]
) -> None:
    _, folder, _ = run(tmp_path / "run", URI)
    with folder.claimed():
        assert command("track", str(folder.path)).rules == ["folder-in-use"]


def test_a_run_without_a_report_was_killed(tmp_path: Path, memory: type[Memory], command: Callable[..., Said]) -> None:
    _, folder, _ = run(tmp_path / "run", URI)
    folder.report.unlink()
    assert command("track", str(folder.path)).code == 0
    assert memory.reports == [None] and len(memory.got) == 4
    assert not folder.report.exists()


def test_what_was_not_finite_arrives_as_such(tmp_path: Path, memory: type[Memory]) -> None:
    """A curve with a hole looks as if nobody had measured: an evaluation's no less than the loss's."""
    plan, folder, report = run(tmp_path / "run", URI)
    last = lines(folder)[-1] | {"step": 5, "tokens_per_second": None, "eval_loss": None, "reward": None, "kl": 0.5}
    with folder.metrics.open("a") as file:
        file.write(json.dumps(last) + "\n")
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).finish(report)
    step, _, values = memory.got[-1]
    assert step == 5 and {name for name, value in values.items() if isnan(value)} == {"eval_loss", "reward"}
    assert "tokens_per_second" not in values and values["kl"] == 0.5


def test_a_copy_elsewhere_makes_no_second_run_here(
    tmp_path: Path, memory: type[Memory], command: Callable[..., Said]
) -> None:
    """What reached an address stays known when the run is sent to another, and it began and ended once."""
    plan, folder, report = run(tmp_path / "run", URI)
    elsewhere = ("track", str(folder.path), "tracking.uri=http://other.example")
    for words in (("track", str(folder.path)), elsewhere):
        assert "6 records sent" in command(*words).out
    for words in (("track", str(folder.path)), elsewhere, ("track", str(folder.path))):
        assert "has all 6 records already" in command(*words).out
    assert len(memory.got) == 2 * len(LOSSES)
    there, here = ledger.everywhere(folder)
    assert (there.uri, here.uri) == ("http://other.example", URI)
    assert (there.started, there.ended) == (here.started, here.ended)
    assert Tracker(plan, folder).finish(report) == ledger.told(here, 6, 0)  # as after `factory resume`
    assert len(memory.got) == 2 * len(LOSSES)
    assert [each.uri for each in ledger.everywhere(folder)] == [URI, "http://other.example"]
    assert ledger.run_ids(folder) == ["a run", "a run"]


def test_a_run_that_nobody_followed_began_when_it_did(
    tmp_path: Path, memory: type[Memory], command: Callable[..., Said]
) -> None:
    """Not when it was sent: it would end before it began. Gone on with, it ended later than was noted."""
    _, folder, _ = run(tmp_path / "run", URI)
    assert command("track", str(folder.path)).code == 0
    book = ledger.known(folder)
    assert book is not None and book.started == lines(folder)[0]["time"] - lines(folder)[0]["seconds"]
    assert book.ended is not None and book.started < book.ended
    ended = lines(folder)[-1]["time"]
    replace(book, ended=ended).write(folder)
    with folder.metrics.open("a") as file:
        file.write(json.dumps({**lines(folder)[-1], "step": 5, "time": ended + 9}) + "\n")
    assert command("track", str(folder.path)).code == 0
    later = ledger.known(folder)
    assert later is not None and later.ended is not None and later.ended >= ended + 9


def test_what_arrived_after_a_run_had_lost_its_patience_is_told(
    tmp_path: Path, memory: type[Memory], command: Callable[..., Said]
) -> None:
    """Its report says that it is missing; the ledger knows better."""
    plan, folder, report = run(tmp_path / "run", URI)
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).finish(report)
    folder.report.write_text(as_json({**report, "tracking": {"unsent": 1, "problem": "no answer within 20 s"}}))
    assert "has all 6 records already" in command("track", str(folder.path)).out
    told = json.loads(folder.report.read_text())["tracking"]
    assert (told["sent"], told["unsent"]) == (6, 0) and "problem" not in told


def test_a_run_that_went_on_after_it_was_sent_is_sent_again(
    tmp_path: Path, memory: type[Memory], command: Callable[..., Said]
) -> None:
    """Under a launcher, and in what follows the last step alone: no line tells that there is something new."""
    plan, folder, report = run(tmp_path / "run", URI, status="interrupted")
    kept = folder.metrics.read_text()
    for words in ((), ("tracking.uri=http://other.example",)):
        assert command("track", str(folder.path), *words).code == 0
    assert outer._begin(plan, folder, Screen()) is None
    folder.metrics.write_text(kept)
    folder.report.write_text(as_json({**report, "status": "finished"}))
    for words in ((), ("tracking.uri=http://other.example",)):
        assert "1 record sent" in command("track", str(folder.path), *words).out
        sent = memory.reports[-1]
        assert sent is not None and sent["status"] == "finished"
    assert steps(memory) == [1, 2, 3, 4] * 2
