"""Under an outer launcher (torchrun, Slurm, Ray): this process is a rank, and there is no parent to follow it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from factory.config.refusal import UserError, refuse
from factory.config.words import pasted
from factory.execute.__main__ import REFUSED, execute
from factory.plan.plan import Plan, to_yaml
from factory.ranks.world import World, launched
from factory.run.folder import RunFolder, last_logged, read_json, unwritable, write_whole
from factory.tracking import ledger

if TYPE_CHECKING:
    from factory.run.screen import Screen

_POLL = 0.5  # seconds


def refuse_outer(said: str) -> None:
    """Raises UserError where a launcher has started this process: it may replay a plan, nothing else."""
    if launched():
        raise refuse(
            "outer-launcher",
            said,
            "a launcher has started this process as one of its ranks",
            because="each of its processes would compile and follow a run of its own",
            fix=(
                "write the plan with `factory plan … plan.format=yaml > plan.yaml`, and start `factory train "
                "--from-plan plan.yaml hydra.run.dir=FOLDER` by the launcher (docs/scaling.md)"
            ),
        )


def run_as_rank(plan: Plan, folder: RunFolder, world: World) -> int:
    """Executes the plan in the folder, which all ranks reach. A run of the same plan that is there goes on.

    Rank 0 claims the folder and prints what happens. Raises UserError.
    """
    asked = plan.settings.hardware.num_processes
    if world.size != asked:
        raise refuse(
            "ranks-of-plan",
            f"WORLD_SIZE={world.size}",
            f"the plan is for {asked}",
            because="the plan was made for so many processes",
            fix="start as many, or make the plan with another hardware.num_processes",
        )
    from factory.run.launch import allocator
    from factory.run.screen import Screen

    os.environ.update(allocator(plan))  # before torch is imported
    world.join(plan.steps.load.device, plan.settings.hardware)
    screen = Screen()
    with folder.claimed() if world.leads else nullcontext():
        problem, start = None, None
        if world.leads:
            try:
                start = _begin(plan, folder, screen)
            except UserError as error:
                problem = error
        failed, start = world.leaders((problem is not None, start))
        if problem is not None:
            raise problem
        if failed:  # rank 0 says why
            return REFUSED
        printed = f"what rank {world.rank} printed"  # where its launcher keeps that
        with _shown(plan, folder, screen) if world.leads else nullcontext():
            return execute(folder, None if start is None else Path(start), world, printed=printed)


def _begin(plan: Plan, folder: RunFolder, screen: "Screen") -> str | None:
    """Writes the plan, and says from which checkpoint the run goes on, in run.log too."""
    there, setting = folder.plan_digest(), f"hydra.run.dir={folder.path}"
    if there is not None and there != plan.digest():
        raise refuse(
            "folder-of-another-plan",
            setting,
            f"it holds a run of another plan ({there})",
            because="the two would be mixed",
            fix="set the same options as that run (see its plan.yaml), or another hydra.run.dir",
        )
    if folder.status() == "finished":
        raise refuse(
            "run-finished",
            setting,
            "its run is finished",
            because="there is nothing to continue",
            fix="set another hydra.run.dir; its report.json has the result",
        )
    folder.forget_the_killed()
    passed_over = list[str]()
    start = folder.onward(passed_over.append, best=plan.settings.stage.load_best_model_at_end)
    folder.keep_start(start)
    write_whole(folder.plan, to_yaml(plan))
    for old in (folder.events, folder.report):
        old.unlink(missing_ok=True)
    folder.forget_metrics_after(last_logged(start))
    ledger.reopen(folder)
    try:
        screen.write_to(folder.log)
    except OSError as error:
        raise unwritable(folder.log, error) from None
    for told in (*passed_over, *([] if start is None else [f"Continuing from {start}"])):
        screen.print(told, soft_wrap=True)
    return None if start is None else str(start)


@contextmanager
def _shown(plan: Plan, folder: RunFolder, screen: "Screen") -> Iterator[None]:
    """Prints what the run writes and looks at the machine, as the parent would. Nothing is sent to MLflow from here."""
    from factory.run.launch import Tail, show
    from factory.run.plan_shown import plan_panel
    from factory.tracking.system import watching

    ended = threading.Event()
    screen.print(plan_panel(plan))
    if plan.settings.tracking.on:
        where, again = plan.settings.tracking.uri or plan.settings.tracking.tool, pasted("track", folder.path)
        screen.print(f"No process follows this run for {where}. When it has ended: {again}", soft_wrap=True)
    files = (Tail(folder.events), Tail(folder.metrics))
    files[1].lines()  # of the attempts before this one

    def follow() -> None:
        while not ended.wait(_POLL):
            _print()

    def _print() -> None:
        for line in sorted((line for file in files for line in file.lines()), key=lambda line: line["time"]):
            show(line, screen)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        with watching(plan.settings.tracking, folder):
            yield
    finally:
        ended.set()
        thread.join()
        _print()
        screen.stop_progress()
        report = read_json(folder.report) or {}
        screen.print(report.get("error") or f"{report.get('status', 'ended')}: {folder.path}", soft_wrap=True)
        screen.write_to(None)
