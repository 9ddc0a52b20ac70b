"""The child: `python -m factory.execute FOLDER [CHECKPOINT]` executes the plan in FOLDER. It writes files only.

Of several ranks each is such a process. All execute; rank 0 writes.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from factory.execute.context import Run
    from factory.ranks.world import World
    from factory.run.folder import RunFolder

FINISHED, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def end_with_parent() -> None:
    """Standard input is a pipe that the parent holds open: when it closes, the parent is gone, however it went."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    end_with_parent()
    from factory.config.redact import redacting
    from factory.ranks.world import from_environment
    from factory.run.folder import RunFolder

    resume = Path(arguments[1]) if len(arguments) > 1 else None
    out, err = redacting(sys.stdout), redacting(sys.stderr)  # which are run.log
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        folder = RunFolder(arguments[0])
        return execute(folder, resume, from_environment(), printed=str(folder.log))


class Ended(NamedTuple):
    """How a run ended. `result` is the executor's, or what a report has of the memory that was not enough."""

    code: int
    status: Literal["finished", "failed", "interrupted"]
    result: dict[str, Any]
    error: str | None = None


def execute(folder: "RunFolder", resume: Path | None, world: "World", *, printed: str) -> int:
    """Executes the plan in the folder as one of the world's ranks; returns the exit code.

    `printed`: where a reader finds what this process prints.
    """
    from factory.config.refusal import UserError
    from factory.execute.context import Run
    from factory.execute.report import write_report
    from factory.plan.plan import read_plan
    from factory.ranks.world import Followed, lost_another

    run = Run(plan=read_plan(folder.plan), folder=folder, resume_from=resume, world=world)
    if run.plan.steps.patch.kernels == "unsloth":
        from factory.steps.unsloth import import_first

        import_first()
    try:
        ended = _walked(run)
    except Followed:
        world.leave()
        return FAILED
    except UserError as problem:
        _record(problem, world)
        ended = Ended(FAILED, "failed", result={}, error=str(problem))
    except Exception as problem:
        traceback.print_exc()
        _record(problem, world)
        if world.size > 1 and lost_another(problem):  # the launcher tells of the one that is gone
            return _at_once(FAILED)
        ended = _crashed(run, problem, printed)
    try:
        if world.leads:
            write_report(run, ended.status, ended.result, ended.error)
    except UserError as problem:
        print(json.dumps({"error": str(problem)}), file=sys.stderr)
        return FAILED
    if ended.status == "failed" and world.size > 1:
        print(ended.error, file=sys.stderr)
        return _at_once(ended.code)
    world.leave()
    return ended.code


def _walked(run: "Run") -> Ended:
    from factory.execute.checkpoint import refuse_other_layout
    from factory.execute.context import Interrupted
    from factory.execute.executor import walk
    from factory.execute.heard import hearing
    from factory.execute.libraries import import_libraries
    from factory.execute.verify import verify

    try:
        # who waits here hears nothing: until all are there, what asks for an end ends the process
        run.world.join(run.plan.steps.load.device, run.plan.settings.hardware)
        run.listen()
        verify(run.plan)
        refuse_other_layout(run)
        with hearing(run.heard):
            with run.step("imports"):
                import_libraries(run.plan)
            result = walk(run)
    except Interrupted:
        return Ended(INTERRUPTED, "interrupted", {})
    red = not all(check["passed"] for check in run.checks.values())
    return Ended(FAILED if red else FINISHED, "finished", result)


def _crashed(run: "Run", problem: Exception, printed: str) -> Ended:
    """By an error that is nobody's refusal; of memory the parent says what to do."""
    from factory.config.refusal import UserError
    from factory.execute import memory
    from factory.execute.report import OUT_OF_MEMORY, spent

    first, result = f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}", dict[str, Any]()
    error = f"[crashed] {first}\n  the traceback is in {printed}"
    if memory.is_exhausted(problem):
        reached = memory.peak(run.plan.steps.load.device)
        error, result = f"[out-of-memory] {first}", {OUT_OF_MEMORY: spent(run.now, first, reached)}
    with contextlib.suppress(UserError):
        run.emit("crashed", text=error.splitlines()[0])
    return Ended(FAILED, "failed", result, error)


def _record(problem: Exception, world: "World") -> None:
    """Where torch's launcher looks for what a rank died of."""
    if world.size == 1:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(problem)


def _at_once(code: int) -> int:
    """Ends the process as it is: it has written what it had to, and others whom it is connected to may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _at_once(main(sys.argv[1:]))  # to take down what the libraries built is a second of CPU time
