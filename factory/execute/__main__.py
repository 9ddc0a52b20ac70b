"""The child: `python -m factory.execute FOLDER [CHECKPOINT]` executes the plan in FOLDER. It writes files only."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

FINISHED, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def _end_with_parent() -> None:
    """Standard input is a pipe that the parent holds open: when it closes, the parent is gone, however it went."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    _end_with_parent()
    from factory.execute import memory
    from factory.execute.context import Interrupted, Run
    from factory.execute.executor import walk
    from factory.execute.report import OUT_OF_MEMORY, spent, write_report
    from factory.execute.verify import verify
    from factory.plan import read_plan
    from factory.refusal import UserError
    from factory.run.folder import RunFolder

    folder = RunFolder(arguments[0])
    resume = Path(arguments[1]) if len(arguments) > 1 else None
    run = Run(plan=read_plan(folder.plan), folder=folder, resume_from=resume, started=time.time())
    run.listen()
    result: dict[str, Any] = {}
    try:
        verify(run.plan)
        result = walk(run)
        red = [name for name, check in run.checks.items() if not check["passed"]]
        code = FAILED if red else FINISHED
        status, error = "finished", None
    except Interrupted:
        code, status, error = INTERRUPTED, "interrupted", None
    except UserError as problem:
        code, status, error = FAILED, "failed", str(problem)
    except Exception as problem:
        traceback.print_exc()
        first = f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"
        error = f"[crashed] {first}\n  the traceback is in {folder.log}"
        code, status = FAILED, "failed"
        if memory.is_exhausted(problem):  # the parent says what to do
            reached = memory.peak(run.plan.steps.load.device)
            error, result = f"[out-of-memory] {first}", {OUT_OF_MEMORY: spent(run.now, first, reached)}
        with contextlib.suppress(UserError):
            run.emit("crashed", text=error.splitlines()[0])
    try:
        write_report(run, status, result, error)
    except UserError as problem:
        print(json.dumps({"error": str(problem)}), file=sys.stderr)
        return FAILED
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
