"""Starts the child for a plan, follows its files, and brings the run to an end that a person can read."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from factory.execute.report import as_json, blank
from factory.plan import Plan, to_yaml
from factory.refusal import UserError
from factory.run.folder import RunFolder, read_json, unwritable, write_whole
from factory.run.screen import Screen, plan_panel, report_panel
from factory.run.tracking import Tracker
from factory.words import program, size

_POLL = 0.1  # seconds
# what the child gets unless the user has set it (docs/measurements.md)
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits does not spin on a core that another process needs
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),  # large tensors are reused, not given back and faulted in each step
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONUNBUFFERED": "1",
}
FINISHED, FAILED, INTERRUPTED = 0, 1, 130


def launch(plan: Plan, folder: RunFolder, resume_from: Path | None, screen: Screen) -> int:
    """Executes the plan in the folder and returns the exit code. Raises UserError when the folder cannot be had."""
    with folder.claimed():
        write_whole(folder.plan, to_yaml(plan))
        for old in (folder.events, folder.report):  # of the attempt before this one
            old.unlink(missing_ok=True)
        # before anyone follows the file
        folder.forget_metrics_after((read_json(resume_from / "state.json") or {})["step"] if resume_from else 0)
        try:
            screen.write_to(folder.log)
        except OSError as error:
            raise unwritable(folder.log, error) from None
        try:
            screen.print(plan_panel(plan))
            if resume_from is not None:
                screen.print(f"Continuing from {resume_from}")
            code, tracker = _follow(plan, folder, resume_from, screen)
            return _finish(plan, folder, code, tracker, screen)
        finally:
            screen.write_to(None)


def _follow(plan: Plan, folder: RunFolder, resume_from: Path | None, screen: Screen) -> tuple[int, Tracker]:
    tracker = Tracker(plan, folder)
    events, metrics = Tail(folder.events), Tail(folder.metrics)
    if resume_from is not None:  # seen already, and perhaps not all of it sent when the attempt before was killed
        tracker.metrics(metrics.lines())
    with _started(plan, folder, resume_from) as child, _forwarding(child, screen) as asked:
        running = True
        while running:
            running = child.poll() is None
            if running:
                time.sleep(_POLL)
            lines = metrics.lines()
            for line in sorted([*lines, *events.lines()], key=lambda line: line["time"]):
                _show(line, screen)
            tracker.metrics(lines)
        screen.stop_progress()
        # asked before it could listen, or for the second time: interrupted all the same
        return (INTERRUPTED if asked and child.returncode < 0 else child.returncode), tracker


@contextmanager
def _started(plan: Plan, folder: RunFolder, resume_from: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """The child, in a session of its own so that Ctrl-C reaches only us; it ends when its standard input closes."""
    environment = {**_ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(plan.steps.train.threads)}
    command = [sys.executable, "-m", "factory.execute", str(folder.path)]
    if resume_from is not None:
        command.append(str(resume_from))
    with folder.log.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


@contextmanager
def _forwarding(child: subprocess.Popen[bytes], screen: Screen) -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) asks the child to stop after its step, the second ends it."""
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            child.kill()
        else:
            child.terminate()
            screen.print("Stopping after this step, and saving (once more: at once) …", style="yellow")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Tail:
    """The whole lines that a file has gained since the last look."""

    def __init__(self, path: Path):
        self._path, self._at, self._rest = path, 0, b""

    def lines(self) -> list[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            return []
        self._at += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        return [json.loads(line) for line in whole if line]


_LABELS = {
    "load": "loading the tokenizer",
    "align": "preparing the data",
    "pack": "packing",
    "attach": "loading the weights",
    "baseline": "measuring before",
    "train": "training",
    "evaluate": "measuring",
}


def _show(event: dict[str, Any], screen: Screen) -> None:
    """A line of events.jsonl, or of metrics.jsonl, which names no event."""
    match event.get("event"):
        case None:
            _show_metrics(event, screen)
        case "start" if event["name"] in _LABELS:
            screen.stop_progress()
            screen.print(f"{_LABELS[event['name']]} …", style="dim")
        case "progress":
            screen.progress(event["name"], event["done"], event["total"])
        case "note":
            screen.print(event["text"])
        case "training":
            screen.print(f"{_rows(event['counts'])}; {event['steps']:,} steps")
        case "saved":
            screen.print(f"saved {event['path']}", style="dim")


def _rows(counts: dict[str, Any]) -> str:
    """Of a stream nothing is known before it is read."""
    if not counts:
        return "rows as they come"
    return (
        f"{counts['used']:,} rows ({counts['trained_tokens']:,} trained of {counts['tokens']:,} tokens), "
        f"{sum(counts['dropped'].values()):,} dropped"
    )


_WATCHED = ("reward", "kl")  # of a stage that samples, whose loss says little


def _show_metrics(line: dict[str, Any], screen: Screen) -> None:
    rate = f"{line['tokens_per_second']:,.0f} tokens/s" if line["tokens_per_second"] else ""
    screen.note("train", f"loss {line['loss']:.3f}  {rate}")
    watched = "".join(f"{name} {line[name]:.3f}  " for name in _WATCHED if name in line)
    screen.print(
        f"step {line['step']:>5}  loss {line['loss']:.4f}  {watched}learning rate {line['learning_rate']:.2e}  "
        f"{rate}  {size(line['memory'])}"
    )


def _finish(plan: Plan, folder: RunFolder, code: int, tracker: Tracker, screen: Screen) -> int:
    report = read_json(folder.report) or _report_of_the_dead(plan, folder, code)
    tracker.finish(report)
    where, again = folder.path, f"{program('factory')} resume {folder.path}"
    if tracker.problem:
        screen.print(f"MLflow did not get everything ({tracker.problem}). The run's folder has it all.", style="yellow")
    if report["status"] == "finished":
        screen.print(report_panel(report, where))
        if plan.verb == "train" and plan.tracking.parent_run is None:  # a sweep says it once, at its end
            screen.print(_next_commands(plan, folder), soft_wrap=True)
        return code
    if report["status"] == "interrupted":
        saved = folder.checkpoint() or (folder.model if folder.model.is_dir() else None)
        kept = f"Saved {saved}." if saved else "Nothing was trained yet."
        screen.print(f"Interrupted. {kept} To continue: {again}", style="yellow", soft_wrap=True)
        return INTERRUPTED
    screen.print(report["error"], style="red")
    if folder.checkpoint() is not None:
        screen.print(f"The last whole checkpoint is kept. To continue: {again}", soft_wrap=True)
    return FAILED


def _report_of_the_dead(plan: Plan, folder: RunFolder, code: int) -> dict[str, Any]:
    """A child that ended without a report was killed, or could not write one."""
    if code == INTERRUPTED:
        error = "[interrupted] The training process was stopped before it could save."
    elif code == -signal.SIGKILL:
        memory = plan.estimate.memory
        error = (
            "[killed] The training process was killed, most often for lack of memory.\n"
            f"  because the plan estimates {size(memory.total)} and {size(memory.capacity)} were free\n"
            "  fix: lower stage.batch_size, set compute.activation_checkpointing=true, or method=qlora"
        )
    else:
        error = f"[crashed] The training process ended with code {code}. Its own words are in {folder.log}"
    report = {**blank(plan, "interrupted" if code == INTERRUPTED else "failed"), "error": error}
    try:
        write_whole(folder.report, as_json(report))
    except UserError as problem:
        report["error"] += f"\n{problem}"
    return report


def _next_commands(plan: Plan, folder: RunFolder) -> str:
    factory, method = program("factory"), plan.steps.attach.method
    lines = ["Next:", f"  {factory} train --from-plan {folder.plan}  # the same run again"]
    if plan.tracking.uri:
        lines.append(f"  {program('mlflow')} ui --backend-store-uri {plan.tracking.uri}  # curves and tables")
    lines.append(f"  {factory} -m method={method},{'lora' if method == 'qlora' else 'qlora'}  # compare methods")
    lines.append(f"  {factory} data=file data.path=YOURS.jsonl  # your own rows")
    return "\n".join(lines)
