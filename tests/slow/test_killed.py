"""Killed with SIGKILL at random moments, child or parent: each time it goes on, and ends with the very same weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

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
    "stage.gradient_accumulation_steps=4",  # a step takes long enough to be hit
    "stage.learning_rate=1e-3",
    "stage.logging_steps=1",
    "stage.save_steps=2",
    "stage.eval_steps=5",
    "stage.load_best_model_at_end=true",
    "data.max_samples=40",
)
STAGES: dict[str, tuple[str, ...]] = {
    "sft": (),
    "sft packed": ("data.packing=true",),
    "sft streaming": ("data.streaming=true", "data.shuffle_buffer=16", "~data.max_samples"),
    "pt packed": ("stage=pt", "data.max_length=64"),
    "dpo": ("stage=dpo",),
    "kto": ("stage=kto",),
    "orpo": ("stage=orpo",),
    "rm": ("stage=rm",),
}
KILLS = {"sft": 20}
UNLIKE = {"tokens_per_second", "memory", "seconds", "time"}


class Forked:
    """In place of a started interpreter: the child's own program in a fork of this process, which has all imported."""

    def __init__(self, command: list[str], *, stdout: Any, **_: Any):
        read, write = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(write)
            for source, target in ((read, 0), (stdout.fileno(), 1), (stdout.fileno(), 2)):
                os.dup2(source, target)
            leave(lambda: child.main(command[3:]))
        os.close(read)
        self._open = write

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(pid: int, folder: Path, chance: random.Random, whom: str) -> bool:
    """Kills at a random moment: while starting, or a few steps on, whatever goes on then. Whether it still ran."""
    parent = psutil.Process(pid)
    if chance.random() < 0.15:
        time.sleep(chance.uniform(0.05, 2))  # most often nothing is trained by then
    else:
        seen, more = events(folder), chance.randint(1, 4)
        while alive(parent) and (events(folder) == seen or steps(folder) < last_step(folder) + more):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.5))
    children = parent.children() if parent.status() != psutil.STATUS_ZOMBIE else []
    if not children:
        return False
    os.kill(children[0].pid if whom == "child" else pid, signal.SIGKILL)
    psutil.wait_procs(children, 60)
    return True


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
    assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))
    assert lines(folder) == lines(whole)
    for name in [path.relative_to(whole) for path in whole.glob("model/*.safetensors")]:
        mine, theirs = load_file(folder / name), load_file(whole / name)
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in theirs), name
    mine, theirs = (json.loads((place / "report.json").read_text()) for place in (folder, whole))
    for key in ("evaluate", "data"):
        assert mine[key] == theirs[key]
    assert mine["train"]["best"] == theirs["train"]["best"]
