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


def start(where: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (where / "screen.txt").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "factory", *arguments],
            cwd=where,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines(folder: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in UNLIKE} for line in found]


def kill(process: subprocess.Popen[bytes], folder: Path, chance: random.Random, whom: str) -> bool:
    """Kills at a random moment: while starting, or a few steps on, whatever goes on then. Whether it still ran."""
    if chance.random() < 0.15:
        time.sleep(chance.uniform(0.3, 6))  # no checkpoint of this attempt yet, most often not even torch
    else:
        more = steps(folder) + chance.randint(1, 4)
        while process.poll() is None and steps(folder) < min(more, STEPS):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.15))
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    if not children:
        return False
    (children[0] if whom == "child" else process).send_signal(signal.SIGKILL)
    process.wait(60)
    psutil.wait_procs(children, 30)
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_goes_on_however_often(stage: str, tiny_model: Path, tmp_path: Path) -> None:
    gone = {word.removeprefix("~") for word in STAGES[stage] if word.startswith("~")}
    words = [word for word in (*SAME, *STAGES[stage]) if word[0] != "~" and word.partition("=")[0] not in gone]
    options = (*words, f"model.path={tiny_model}")
    assert start(tmp_path, *options, "hydra.run.dir=whole").wait(300) == 0, (tmp_path / "screen.txt").read_text()
    chance, wanted, done, runs = random.Random(stage), KILLS.get(stage, 5), 0, 0
    while done < wanted:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        again = (*options, "stage.resume=auto", f"hydra.run.dir={folder.name}")
        while done < wanted and not finished(folder):
            process = start(tmp_path, *again)
            done += kill(process, folder, chance, "parent" if done % 4 == 3 else "child")
            process.wait(300)
        if not finished(folder):
            assert start(tmp_path, *again).wait(300) == 0, (tmp_path / "screen.txt").read_text()[-3000:]
        assert_same(folder, tmp_path / "whole")
    print(f"{stage}: killed {done} times in {runs} runs")


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
