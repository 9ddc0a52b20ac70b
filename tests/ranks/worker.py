"""One rank of several: executes the plans of a list, one after the other, in one process.

`torchrun … worker.py JOBS.json`; JOBS.json is a list of {folder, stop_at, resume}: the folder has plan.yaml, rank
`stop_rank` is asked to stop in step `stop_at` (from 1), `resume` goes on from the newest checkpoint. Rank 0 writes
folder/result.json, with the types that linear layers compute in: `dtypes`, in training and in evaluation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from factory.execute.context import Interrupted, Run
from factory.execute.executor import walk
from factory.plan import read_plan
from factory.ranks.world import World, from_environment
from factory.run.folder import RunFolder
from factory.steps import train

_UPDATES = train._updates
_DTYPES: dict[str, set[str]] = {"training": set(), "evaluation": set()}


def observe(module: torch.nn.Module, _given: Any, made: Any) -> None:
    if isinstance(module, torch.nn.Linear):
        _DTYPES["training" if module.training else "evaluation"].add(str(made.dtype).removeprefix("torch."))


def work(job: dict[str, Any], world: World) -> None:
    folder = RunFolder(job["folder"])
    start = folder.checkpoint() if job.get("resume") else None
    world.wait()
    run = Run(plan=read_plan(folder.plan), folder=folder, resume_from=start, world=world)

    def updates(run: Run, loop: train.Loop, *values: Any) -> Any:
        if loop.state.step + 1 == job.get("stop_at") and world.rank == job.get("stop_rank", 0):
            run.stopping = True
        return _UPDATES(run, loop, *values)

    train._updates = updates
    for seen in _DTYPES.values():
        seen.clear()
    # as on a GPU, where DeepSpeed's engine sees the autocast around it: it asks for CUDA's only
    torch.set_autocast_enabled("cuda", run.plan.steps.train.autocast is not None)
    result: dict[str, Any] = {}
    try:
        result, status = walk(run), "finished"
    except Interrupted:
        status = "interrupted"
    if world.leads:
        found = {"status": status, **result, "checks": run.checks, "memory": run.memory_by_step}
        found["dtypes"] = {name: sorted(seen) for name, seen in _DTYPES.items()}
        (folder.path / "result.json").write_text(json.dumps(found))


def main(jobs: list[dict[str, Any]]) -> None:
    torch.nn.modules.module.register_module_forward_hook(observe)
    world = from_environment()
    world.join("cpu", read_plan(RunFolder(jobs[0]["folder"]).plan).steps.train.ranks)
    for job in jobs:
        work(job, world)
    world.leave()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
