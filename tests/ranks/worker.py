"""Several ranks, of which each executes the plans of a list, one after the other, in one process.

`worker.py JOBS.json RANKS`; JOBS.json is a list of {folder, stop_at, resume, late, bad}: the folder has plan.yaml,
rank `stop_rank` is asked to stop in step `stop_at` (from 1), `resume` goes on from the newest checkpoint, `late` is as
on a GPU, and in step `bad` rank 1 has a loss without end, whose gradients are finite. Rank 0 writes folder/result.json,
with the types that linear layers compute in, in training and in evaluation (`dtypes`), and of each step that was asked
for late what was read before it was whole (`seen`). A job with `attach`, its model whole or not, trains nothing.
"""

import gc
import json
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from attaching import attached

sys.path.append(str(Path(__file__).parents[1]))
from reads import Reads

from factory.execute.context import Interrupted, Run
from factory.execute.executor import walk
from factory.plan.plan import read_plan
from factory.ranks.world import World, from_environment
from factory.run.folder import RunFolder
from factory.steps import train
from factory.steps.engine import Engine

_ASKED, _UPDATES, _RUNS_AHEAD, _TERMS = train._asked, train._updates, train.runs_ahead, Engine._terms
_IMPORTED = (
    "bitsandbytes",
    "deepspeed",
    "peft",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.modeling_utils",
)
_PATIENCE = 500  # seconds
_DTYPES: dict[str, set[str]] = {"training": set(), "evaluation": set()}


def observe(module: torch.nn.Module, _given: Any, made: Any) -> None:
    if isinstance(module, torch.nn.Linear):
        _DTYPES["training" if module.training else "evaluation"].add(str(made.dtype).removeprefix("torch."))


def work(job: dict[str, Any], world: World) -> None:
    if "attach" in job:
        attached(Path(job["folder"]), world, whole=job["attach"])
        world.wait()
        return
    folder = RunFolder(job["folder"])
    start = folder.checkpoint() if job.get("resume") else None
    world.wait()
    run = Run(plan=read_plan(folder.plan), folder=folder, resume_from=start, world=world)
    step, seen = 0, list[list[str]]()

    def begins(loop: train.Loop) -> None:
        nonlocal step
        step = loop.state.step + 1
        if step == job.get("stop_at") and world.rank == job.get("stop_rank", 0):
            run.stopping = True

    def updates(run: Run, loop: train.Loop, *values: Any) -> Any:
        begins(loop)
        return _UPDATES(run, loop, *values)

    def asked(run: Run, loop: train.Loop, *values: Any) -> Any:
        begins(loop)
        reads = Reads()
        with reads:
            read = _ASKED(run, loop, *values)
        seen.append(reads.seen)
        return read

    def terms(self: Engine, batch: dict[str, Any]) -> Any:
        total, metrics = _TERMS(self, batch)
        return total + (inf if step == job.get("bad") and world.rank == 1 else 0), metrics

    train._updates, train._asked, Engine._terms = updates, asked, terms
    train.runs_ahead = (lambda _: True) if job.get("late") else _RUNS_AHEAD
    for kinds in _DTYPES.values():
        kinds.clear()
    # as on a GPU, where DeepSpeed's engine sees the autocast around it: it asks for CUDA's only
    torch.set_autocast_enabled("cuda", run.plan.steps.train.autocast is not None)
    result: dict[str, Any] = {}
    try:
        result, status = walk(run), "finished"
    except Interrupted:
        status = "interrupted"
    if world.leads:
        found = {"status": status, **result, "checks": run.checks, "memory": run.memory_by_step}
        found |= {"dtypes": {name: sorted(kinds) for name, kinds in _DTYPES.items()}, "seen": seen}
        (folder.path / "result.json").write_text(json.dumps(found))


def main(jobs: list[dict[str, Any]]) -> None:
    torch.nn.modules.module.register_module_forward_hook(observe)
    world = from_environment()
    world.join("cpu", read_plan(RunFolder(jobs[0]["folder"]).plan).settings.hardware)
    for job in jobs:
        work(job, world)
    world.leave()


def start(jobs: list[dict[str, Any]], ranks: int) -> int:
    """Fork a process for each rank, as a launcher would start it, after what all of them import: half their time."""
    for name in _IMPORTED:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()  # else each rank would look through all of that again whenever it collects
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(ranks), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    started = list[Any]()
    for rank in range(ranks):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        started.append(get_context("fork").Process(target=main, args=(jobs,), daemon=True))
        started[-1].start()
    for each in started:
        each.join(_PATIENCE)
    return int(any(each.exitcode != 0 for each in started))


if __name__ == "__main__":
    sys.exit(start(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
