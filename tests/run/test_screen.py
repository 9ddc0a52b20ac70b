"""What a run does that nobody reads any more: it goes on, and run.log has all of it."""

import json
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import side_by_side
from commands import PATIENCE, SMALL, Command, metrics, steps, wait_for
from rich.table import Table

from factory.outlet import outlets
from factory.run.screen import Screen
from factory.tracking.to_mlflow import connect

LOST = "Standard output cannot be written"


@contextmanager
def unread() -> Iterator[int]:
    """A pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def test_the_log_says_once_that_it_alone_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "run.log"
    with unread() as writer, os.fdopen(os.dup(writer), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with outlets(goes_on=True):
            screen = Screen()
            screen.write_to(log)
            screen.print("one")
            screen.print("two")
            screen.write_to(None)
    first, *others = log.read_text().splitlines()
    assert first.startswith(f"{LOST} (Broken pipe)") and others == ["one", "two"]


def test_a_run_without_a_reader_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    words = (*SMALL, "tracking=none", f"model.path={tiny_model}", "stage.max_steps=4")
    with unread() as writer:
        command = Command(tmp_path, *words, "hydra.run.dir=run", out=writer)
    text = command.ends(0)  # which is standard error alone
    assert text.count(LOST) == 1
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(LOST) == 1 and "step     4" in log and "Traceback" not in log
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    """The shell in it and the kernel both send a hangup."""
    words = (*SMALL, "tracking=none", f"model.path={tiny_model}", "stage.max_steps=100000", "hydra.run.dir=run")
    line = f"{sys.executable} -m factory {' '.join(words)}; echo $? > code"
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvp("bash", ["bash", "--norc", "-ic", line])  # noqa: S606  the shell is it
    wait_for(lambda: steps(tmp_path / "run") >= 3 or not os.read(terminal, 4096), PATIENCE)
    os.close(terminal)
    report = tmp_path / "run" / "report.json"
    wait_for(report.exists, PATIENCE)
    os.waitpid(process, 0)
    assert json.loads(report.read_text())["status"] == "interrupted"
    saved = tmp_path / "run" / "checkpoints" / f"step-{steps(tmp_path / 'run'):06d}"
    wait_for(lambda: f"Saved run/checkpoints/{saved.name}" in (tmp_path / "run/run.log").read_text(), PATIENCE)
    assert saved.is_dir()


@pytest.mark.slow
def test_a_sweep_without_a_reader_closes_its_run(tmp_path: Path, tiny_model: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = (*SMALL, f"tracking.uri={uri}", f"model.path={tiny_model}", "stage.max_steps=2", "seed=1,2")
    with unread() as writer:
        Command(tmp_path, "-m", *words, "hydra.sweep.dir=swept", out=writer).ends(0)
    for job in ("0", "1"):
        log = (tmp_path / "swept" / job / "run.log").read_text()
        assert log.count(LOST) == 1 and "step     2" in log
    record = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    client, _ = connect(side_by_side.tracking(uri))
    assert client.get_run(record["parent_run"]).info.status == "FINISHED"


def test_what_is_printed_is_what_was_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """rich would make an emoji of what stands between two colons: in a refusal, a table's cell, a row of a preview."""
    said = "evaluate.metrics=mine:boom: it raised ValueError"
    screen = Screen()
    screen.write_to(tmp_path / "run.log")
    screen.print(said)
    table = Table("run")
    table.add_row(said)
    screen.print(table)
    assert capsys.readouterr().out.count(said) == (tmp_path / "run.log").read_text().count(said) == 2
