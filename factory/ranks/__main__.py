"""`python -m factory.ranks FOLDER [CHECKPOINT]` starts the ranks of the plan in FOLDER, each as the one child would be.

torch's elastic launcher, as torchrun has it: rendezvous, supervision, and the end of all ranks when one dies.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from factory.execute.__main__ import FAILED, FINISHED, INTERRUPTED, end_with_parent
from factory.execute.report import as_json, blank
from factory.plan import Plan, read_plan
from factory.ranks.world import lost_another
from factory.run.folder import RunFolder, read_json, write_whole

_GRACE = 10  # seconds that the others have when one has died, until they are killed


def main(arguments: list[str]) -> int:
    end_with_parent()
    folder = RunFolder(arguments[0])
    plan = read_plan(folder.plan)
    _pass_on_signals()
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_GRACE)
    with TemporaryDirectory() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=plan.steps.train.ranks.processes,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGHUP",  # the others are passed on: a rank ends its step and saves
            logs_specs=DefaultLogsSpecs(log_dir=errors),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "factory.execute", *arguments)
        except ChildFailedError as error:
            return _ended(plan, folder, died(error.failures, Path(errors)))
    return FINISHED


def _pass_on_signals() -> None:
    """To the ranks, which are all the children that there are."""
    import psutil

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)


@dataclass(frozen=True, slots=True)
class Death:
    """How a rank ended: by a signal's number, or by an error of its own at a time (seconds)."""

    rank: int
    signal: int | None
    error: str
    time: int


def died(failures: Mapping[int, Any], errors: Path) -> Death:
    """The first: killed, then by an error of its own, then by the loss of another. All ranks are of this node.

    A rank that has told its error may not have ended when another, which lost it, has.
    """
    found = [
        Death(rank, -failure.exitcode if failure.exitcode < 0 else None, "", failure.timestamp)
        for rank, failure in failures.items()
    ]
    for file in errors.glob("**/error.json"):
        message = json.loads(file.read_text(encoding="utf-8"))["message"]
        found.append(Death(int(file.parent.name), None, message["message"], int(message["extraInfo"]["timestamp"])))
    return min(found, key=lambda death: (death.signal is None, not death.error, lost_another(death.error), death.time))


def _ended(plan: Plan, folder: RunFolder, first: Death) -> int:
    """The exit code by rank 0's report; where it could write none, the report of who was the first to die."""
    status = (read_json(folder.report) or {}).get("status")
    if status is None:
        text = told(first, plan.steps.train.ranks.processes, folder.log)
        write_whole(folder.report, as_json({**blank(plan, "failed"), "error": text}))
    return INTERRUPTED if status == "interrupted" else FAILED


def told(death: Death, size: int, log: Path) -> str:
    """What a person reads of a rank that died."""
    who = f"[rank-died] Rank {death.rank} of {size}"
    if death.signal is not None:
        return (
            f"{who} was killed ({signal.Signals(death.signal).name}), most often for lack of memory.\n"
            "  because the others cannot go on without it, they were ended too\n"
            "  fix: lower stage.batch_size, set compute.activation_checkpointing=true, or hardware.strategy=fsdp"
        )
    return f"{who}: {death.error or 'it ended without a word'}\n  its own words are in {log}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
