"""One rank of several: executes the plans of a list, one after the other, without a child each.

`torchrun … worker.py JOBS.json`; JOBS.json is a list of {folder, resume, stop_at}. Rank 0 writes folder/result.json.
"""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main(path: Path) -> None:
    from factory.execute.context import Interrupted, Run
    from factory.execute.executor import walk
    from factory.plan import read_plan
    from factory.ranks.world import from_environment
    from factory.run.folder import RunFolder
    from factory.steps import train

    world = from_environment()
    world.join("cpu")
    original = train._updates
    for job in json.loads(path.read_text()):
        folder = RunFolder(job["folder"])
        resume = Path(job["resume"]) if job.get("resume") else None
        plan = read_plan(folder.plan)
        run = Run(plan=plan, folder=folder, resume_from=resume, started=time.time(), world=world)

        def updates(run: Run, *values: Any, job: dict[str, Any] = job) -> Any:
            state = values[3]
            if state.step + 1 == job.get("stop_at") and run.world.rank == job.get("stop_rank", 0):
                run.stopping = True
            return original(run, *values)

        train._updates = updates
        result: dict[str, Any] = {}
        try:
            result = walk(run)
            status = "finished"
        except Interrupted:
            status = "interrupted"
        if world.leads:
            found = {"status": status, **result, "checks": run.checks, "memory": run.memory_by_step}
            (folder.path / "result.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        raise
