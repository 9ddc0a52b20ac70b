"""`python -m factory.ranks FOLDER [CHECKPOINT]` starts the ranks of the plan in FOLDER, each as the one child would be.

torch's elastic launcher, as torchrun has it: rendezvous, supervision, and the end of all ranks when one dies.
"""

import json
import os
import signal
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from factory.config.refusal import refusal
from factory.config.settings import Hardware
from factory.execute.__main__ import FAILED, FINISHED, INTERRUPTED, end_with_parent
from factory.execute.report import as_json, blank
from factory.plan.plan import Plan, read_plan
from factory.ranks.world import WATCHDOG, late, lost_another
from factory.run.folder import RunFolder, read_json, write_whole
from factory.stopping import answer


def main(arguments: list[str]) -> int:
    end_with_parent()
    folder = RunFolder(arguments[0])
    plan, since = read_plan(folder.plan), folder.log.stat().st_size
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    passed = _pass_on_signals()  # until here one that asks for it ends this process, as there is nothing to save
    with TemporaryDirectory() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=plan.settings.hardware.num_processes,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGQUIT",  # the others are passed on: a rank ends its step and saves
            logs_specs=DefaultLogsSpecs(log_dir=errors),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "factory.execute", *arguments)
        except ChildFailedError as error:
            found = deaths(error.failures, Path(errors))
            return INTERRUPTED if stopped(found, passed) else _ended(plan, folder, found, since)
    return FINISHED


def _pass_on_signals() -> Collection[int]:
    """To the ranks, which are all the children that there are; before there is any, this process ends.

    Returns those that came, as they come.
    """
    import psutil

    passed: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed.append(number)
        ranks = psutil.Process().children()
        for rank in ranks:
            rank.send_signal(number)
        if not ranks:
            sys.exit(INTERRUPTED)

    answer(pass_on)
    return passed


@dataclass(frozen=True, slots=True)
class Death:
    """How a rank ended: by a signal's number, or by an error of its own at a time (seconds)."""

    rank: int
    signal: int | None
    error: str
    time: int


def deaths(failures: Mapping[int, Any], errors: Path) -> list[Death]:
    """All that is known of them, of a rank once or twice. All ranks are of this node.

    A rank that has told its error may not have ended when another, which lost it, has.
    """
    found = [
        Death(rank, -failure.exitcode if failure.exitcode < 0 else None, "", failure.timestamp)
        for rank, failure in failures.items()
    ]
    for file in errors.glob("**/error.json"):
        message = json.loads(file.read_text(encoding="utf-8"))["message"]
        found.append(Death(int(file.parent.name), None, message["message"], int(message["extraInfo"]["timestamp"])))
    return found


def stopped(found: Collection[Death], passed: Collection[int]) -> bool:
    """Whether a rank ended by what asked it to stop: it did not listen yet, and nothing is there to report."""
    return any(death.signal in passed for death in found) and not any(map(_fell, found))


def _fell(death: Death) -> bool:
    """By an error of its own."""
    return bool(death.error) and not lost_another(death.error)


def _ended(plan: Plan, folder: RunFolder, found: Collection[Death], since: int) -> int:
    """The exit code by rank 0's report; where it could write none, the report of who was the first to die."""
    status = (read_json(folder.report) or {}).get("status")
    if status is None:
        hardware = plan.settings.hardware
        text = hung(found, hardware, folder.log, since) or died(found, hardware.num_processes, folder.log)
        write_whole(folder.report, as_json({**blank(plan, "failed"), "error": text}))
    return INTERRUPTED if status == "interrupted" else FAILED


def hung(found: Collection[Death], hardware: Hardware, log: Path, since: int) -> str | None:
    """What a person reads where ranks waited in vain: for those that said nothing until they were killed.

    The log's first `since` bytes are of other attempts.
    """
    waited = {death.rank for death in found if late(death.error) or _aborted_waiting(death, log, since)}
    if not waited or any(map(_fell, found)):
        return None
    silent = set(range(hardware.num_processes)) - waited - {death.rank for death in found if death.error}
    size = hardware.num_processes
    who = f"{_named(silent, size)} hung" if silent else f"{_named(waited, size)} waited, and another came too late"
    return str(
        refusal(
            "rank-hung",
            f"hardware.rank_timeout={hardware.rank_timeout}",
            who,
            because="ranks make each step together, and the others waited that many seconds for it",
            fix=(
                "continue from the last checkpoint; look at its machine, GPU and disk where it hangs again, or "
                f"raise hardware.rank_timeout where it was only slow. The words of all ranks are in {log}"
            ),
        )
    )


def _aborted_waiting(death: Death, log: Path, since: int) -> bool:
    """NCCL's watchdog ends a process in which the main thread waits, and tells it in the log alone."""
    return death.signal == signal.SIGABRT and WATCHDOG in log.read_bytes()[since:].decode(errors="replace").lower()


def _named(ranks: Collection[int], size: int) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))} of {size}"


def died(found: Collection[Death], size: int, log: Path) -> str:
    """What a person reads of the first to die: killed, then by an error of its own, then by the loss of another."""
    death = min(found, key=lambda each: (each.signal is None, not each.error, lost_another(each.error), each.time))
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
