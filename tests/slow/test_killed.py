"""Killed with SIGKILL at random moments, child or parent: each time it goes on, and ends with the very same weights."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import commands
import psutil
import pytest
from commands import metrics, steps
from conftest import compiled
from safetensors.torch import load_file

from factory.config.refusal import UserError
from factory.execute import __main__ as child
from factory.plan.plan import Plan
from factory.run import launch
from factory.run.folder import RunFolder
from factory.run.screen import Screen

pytestmark = pytest.mark.slow
STEPS = 40
SAME = (
    "tracking=none",
    "hardware=cpu",
    "precision=fp32",
    "method=lora",
    "method.rank=4",
    "method.dropout=0.1",
    "evaluate.samples=0",
    "evaluate.batch_size=2",
    f"stage.max_steps={STEPS}",
    "stage.batch_size=2",
    "stage.gradient_accumulation_steps=8",  # a step takes long enough to be hit
    "stage.learning_rate=1e-3",
    "stage.logging_steps=1",
    "stage.save_steps=2",
    "stage.eval_steps=5",
    "stage.load_best_model_at_end=true",
    "data.max_samples=40",
)
SAMPLED = (
    "stage.reward=letters_scoring:letters",
    "stage.max_new_tokens=6",
    "stage.rollout_batch_size=16",
    "~method.dropout",
)
STAGES: dict[str, tuple[str, ...]] = {
    **commands.STAGES,
    "sft packed": ("data.packing=true",),
    "sft streaming": (*commands.STAGES["sft streaming"], "~data.max_samples"),
    "ppo": ("stage=ppo", *SAMPLED),
    "grpo": ("stage=grpo", "stage.group_size=4", *SAMPLED),
}
KILLS = {"sft": 20}


class Forked:
    """In place of a started interpreter: the child's own program in a fork of this process, which has all imported."""

    def __init__(self, command: list[str], *, stdout: Any, **_: Any):
        read, write = os.pipe()
        self.returncode: int | None = None
        self.stdin = None  # closed by nobody: ranks are not started here
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(write)
            for source, target in ((read, 0), (stdout.fileno(), 1), (stdout.fileno(), 2)):
                os.dup2(source, target)
            leave(lambda: child.main(command[3:]))
        os.close(read)
        self._open = write  # closes when this process ends, however it does

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def leave(work: Callable[[], int]) -> NoReturn:
    """Ends a fork with what the work returns: nothing of the tests goes on in it."""
    code = 99
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(plan: Plan, folder: Path) -> int:
    """The process id of a parent, which starts and follows its child as the command line does."""
    pid = os.fork()
    if pid:
        return pid
    with (folder.parent / "screen.txt").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    vars(launch)["subprocess"] = SimpleNamespace(Popen=Forked, PIPE=None)
    run = RunFolder(folder)
    leave(lambda: launch.launch(plan, run, run.checkpoint(), Screen(), no_advice))


def no_advice(_overrides: tuple[str, ...]) -> Plan:
    raise UserError


def ended(pid: int, seconds: float) -> int:
    """The exit code of a fork."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    raise AssertionError(f"it has not ended within {seconds} s")


def kill(pid: int, folder: Path, chance: random.Random, whom: str) -> bool:
    """Kills at a random moment: while starting, or a few steps on, whatever goes on then. Whether it still ran."""
    parent = psutil.Process(pid)
    if chance.random() < 0.1:
        time.sleep(chance.uniform(0.05, 2))  # most often nothing is trained by then
    else:
        more = chance.randint(1, 6)
        while alive(parent) and ((begun := training(folder)) is None or steps(folder) < begun + more):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
    children = parent.children() if alive(parent) else []
    if not children:
        return False
    os.kill(children[0].pid if whom == "child" else pid, signal.SIGKILL)
    psutil.wait_procs(children, 60)
    return True


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def training(folder: Path) -> int | None:
    """The step from which the present attempt trains, once it does: the file is its own."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((json.loads(line)["done"] for line in lines if '"training"' in line), None)


@pytest.mark.usefixtures("scoring")
@pytest.mark.parametrize("stage", STAGES)
def test_goes_on_however_often(stage: str, tiny_model: Path, tmp_path: Path) -> None:
    gone = {word.removeprefix("~") for word in STAGES[stage] if word.startswith("~")}
    words = [word for word in (*SAME, *STAGES[stage]) if word[0] != "~" and word.partition("=")[0] not in gone]
    plan, screen = compiled(*words, f"model.path={tiny_model}"), tmp_path / "screen.txt"
    assert ended(start(plan, tmp_path / "whole"), 600) == 0, screen.read_text()[-3000:]
    chance, wanted, runs = random.Random(stage), KILLS.get(stage, 5), 0
    killed: list[int] = []  # the steps that were done when it was
    while len(killed) < wanted:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        while len(killed) < wanted and not finished(folder):
            (folder / "events.jsonl").unlink(missing_ok=True)
            pid = start(plan, folder)
            was = kill(pid, folder, chance, "parent" if len(killed) % 4 == 3 else "child")
            ended(pid, 600)
            killed += [steps(folder)] if was else []
        if not finished(folder):
            assert ended(start(plan, folder), 600) == 0, screen.read_text()[-3000:]
        assert_same(folder, tmp_path / "whole")
    print(f"{stage}: killed {len(killed)} times in {runs} runs, after steps {killed}")


def finished(folder: Path) -> bool:
    path = folder / "report.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


def assert_same(folder: Path, whole: Path) -> None:
    assert [line["step"] for line in metrics(whole)] == list(range(1, STEPS + 1))
    assert metrics(folder) == metrics(whole)
    for name in [path.relative_to(whole) for path in whole.glob("model/*.safetensors")]:
        mine, theirs = load_file(folder / name), load_file(whole / name)
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in theirs), name
    mine, theirs = (json.loads((place / "report.json").read_text()) for place in (folder, whole))
    for key in ("evaluate", "data"):
        assert mine[key] == theirs[key]
    assert mine["train"]["best"] == theirs["train"]["best"]
