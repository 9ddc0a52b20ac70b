"""Ranks that the command starts: they stop together, they end together, and who died first is told first."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from commands import Command, customized, metrics, steps, wait_for

from factory.run.folder import RunFolder

SAME = (
    "tracking=none",
    "hardware=cpu",
    "hardware.num_processes=2",
    "hardware.strategy=ddp",
    "precision=fp32",
    "evaluate.samples=0",
    "evaluate.perplexity=false",
    "stage.logging_steps=1",
    "stage.save_steps=50",
    "stage.max_steps=1000000",
    "data.max_samples=40",
)
ENDED_WITHIN = 30  # seconds


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def ranks(command: Command) -> list[psutil.Process]:
    """Rank 0 first."""
    found = [each for each in psutil.Process(command.process.pid).children(recursive=True) if "RANK" in each.environ()]
    return sorted(found, key=lambda each: int(each.environ()["RANK"]))


def gone(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


def test_ranks_stop_at_the_same_step_and_end_with_each_other(
    tiny_model: Path, where: Path, started: Callable[..., Command]
) -> None:
    folder = where / "run"
    command = started(*SAME, f"model.path={tiny_model}", "hydra.run.dir=run")
    wait_for(lambda: steps(folder) >= 3, 90)
    command.process.send_signal(signal.SIGINT)
    text = command.ends(130)
    saved, done = RunFolder(folder).checkpoint(), steps(folder)
    assert saved is not None and saved.name == f"step-{done:06d}"
    assert "factory resume run" in text
    assert json.loads((folder / "report.json").read_text())["status"] == "interrupted"

    command = started("resume", "run")
    wait_for(lambda: steps(folder) >= done + 3, 90)
    both, start = ranks(command), time.monotonic()
    assert len(both) == 2
    both[1].kill()
    text = command.ends(1)
    assert time.monotonic() - start < ENDED_WITHIN
    assert "[rank-died] Rank 1 of 2 was killed (SIGKILL)" in text
    assert "Traceback" not in text and "factory resume run" in text
    assert gone(both)
    assert json.loads((folder / "report.json").read_text())["status"] == "failed"
    assert [line["step"] for line in metrics(folder)] == list(range(1, steps(folder) + 1))


def launched(command: Command) -> bool:
    """Whether there is what starts the ranks; it imports torch first."""
    return any("factory.ranks" in each.cmdline() for each in psutil.Process(command.process.pid).children())


@pytest.mark.slow
@pytest.mark.parametrize("begun", [0, 2])
def test_ranks_that_start_are_stopped_at_once(
    begun: int, tiny_model: Path, where: Path, started: Callable[..., Command]
) -> None:
    command = started(*SAME, f"model.path={tiny_model}", f"hydra.run.dir=early-{begun}")
    wait_for(lambda: launched(command) and len(ranks(command)) == begun, 90)
    command.process.send_signal(signal.SIGINT)
    assert "Nothing was trained yet" in command.ends(130)
    assert json.loads((where / f"early-{begun}" / "report.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.usefixtures("hangup")
def test_a_hangup_reaches_the_ranks(tiny_model: Path, where: Path, started: Callable[..., Command]) -> None:
    folder = where / "hung-up"
    command = started(*SAME, f"model.path={tiny_model}", "hydra.run.dir=hung-up")
    wait_for(lambda: steps(folder) >= 3, 90)
    command.child().send_signal(signal.SIGHUP)  # which has started them
    assert "factory resume hung-up" in command.ends(130)
    saved = RunFolder(folder).checkpoint()
    assert saved is not None and saved.name == f"step-{steps(folder):06d}"


@pytest.mark.slow
def test_ranks_end_with_the_command(tiny_model: Path, where: Path, started: Callable[..., Command]) -> None:
    command = started(*SAME, f"model.path={tiny_model}", "hydra.run.dir=killed")
    wait_for(lambda: len(ranks(command)) == 2 and steps(where / "killed") >= 3, 90)
    both = ranks(command)
    command.process.kill()
    wait_for(lambda: gone(both), 10)


@pytest.mark.slow
def test_the_error_of_the_rank_that_raised_is_told(
    tiny_model: Path, where: Path, started: Callable[..., Command]
) -> None:
    broken = "import factory.steps.engine as module; module.Engine.clip = lambda self: [][3]"
    environment = customized(where, "broken", broken, rank=1)
    start = time.monotonic()
    text = started(*SAME, f"model.path={tiny_model}", "hydra.run.dir=bug", **environment).ends(1)
    assert time.monotonic() - start < 60 + ENDED_WITHIN
    assert "[rank-died] Rank 1 of 2: IndexError: list index out of range" in text
    assert "IndexError" in (where / "bug" / "run.log").read_text()
