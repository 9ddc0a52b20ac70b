"""Runs of one process and of two, side by side: their plans, their start, what they leave."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import compiled
from safetensors.torch import load_file

from factory.execute.context import Run
from factory.execute.executor import walk
from factory.plan.plan import Plan, to_yaml
from factory.run.folder import RunFolder

WORKER = Path(__file__).parent / "ranks" / "worker.py"
PRINTED = "printed.txt"
MICRO_BATCHES = 4  # of a step, on all ranks together
# 26 rows of 29 are trained: the epoch's last step has one micro-batch of 2, which one of two ranks has alone
SAME = (
    "hardware=cpu",
    "tracking=none",
    "precision=fp32",
    "stage.batch_size=2",
    "stage.num_epochs=2",
    "stage.learning_rate=1e-3",
    "stage.logging_steps=1",
    "data.max_samples=29",
    "evaluate.samples=0",
)
STEPS = 8


def planned(strategy: str, ranks: int, *overrides: str) -> Plan:
    shape = (f"hardware.num_processes={ranks}", f"hardware.strategy={strategy}")
    return compiled(*SAME, *shape, f"stage.gradient_accumulation_steps={MICRO_BATCHES // ranks}", *overrides)


@dataclass(frozen=True)
class Left:
    """What a run left in its folder."""

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        named = ("step", "loss", "grad_norm", "tokens")
        watched = [name for name in lines[0] if "/" in name or name == "kl"]
        return [{name: line[name] for name in (*named, *watched)} for line in lines]

    @property
    def weights(self) -> dict[str, Any]:
        files = sorted((self.folder / "model").glob("*.safetensors"))
        return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def alone(folder: Path, plan: Plan, resume: bool = False) -> Left:
    """One process: this one."""
    where = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    where.plan.write_text(to_yaml(plan))
    start = where.checkpoint() if resume else None
    run = Run(plan=plan, folder=where, resume_from=start)
    run.world.join("cpu", plan.settings.hardware)
    try:
        result = walk(run)
    finally:
        run.world.leave()
    (folder / "result.json").write_text(json.dumps({**result, "checks": run.checks, "memory": run.memory_by_step}))
    return Left(folder)


def begun(where: Path, jobs: list[dict[str, Any]], ranks: int = 2) -> subprocess.Popen[bytes]:
    """The jobs' plans, by as many ranks, which are started once. `plan` is the job's, `folder` a name in `where`."""
    for job in jobs:
        folder = where / job["folder"]
        folder.mkdir(exist_ok=True)
        (folder / "plan.yaml").write_text(to_yaml(job["plan"]))
    file = where / "jobs.json"
    told = [{**job, "folder": str(where / job["folder"]), "plan": None} for job in jobs]
    file.write_text(json.dumps(told))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with (where / PRINTED).open("wb") as printed:
        command = [sys.executable, WORKER, str(file), str(ranks)]
        return subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)


def ended(ranks: subprocess.Popen[bytes], where: Path) -> None:
    assert ranks.wait(550) == 0, (where / PRINTED).read_text()[-5000:]


def together(where: Path, jobs: list[dict[str, Any]]) -> None:
    ended(begun(where, jobs), where)
