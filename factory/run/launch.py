"""Starts the child for a plan, follows its files, and brings the run to an end that a person can read."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from factory.config.redact import clean_file
from factory.config.refusal import UserError, refusal
from factory.config.words import counted, pasted, rate, size
from factory.execute import memory
from factory.execute.__main__ import FAILED, INTERRUPTED
from factory.execute.context import STARTED, age_of
from factory.execute.report import OUT_OF_MEMORY, as_json, blank, spent
from factory.plan.inspect import calibration, cgroup
from factory.plan.inspect.machine import look_at_machine
from factory.plan.plan import Plan, to_yaml
from factory.ranks.spec import SPLIT
from factory.run.advice import Anew, cheapest
from factory.run.folder import RunFolder, last_logged, read_json, step_of, unwritable, write_whole
from factory.run.next_commands import next_commands
from factory.run.plan_shown import plan_panel
from factory.run.report_shown import report_panel
from factory.run.screen import Screen
from factory.run.shorter import for_the_rows
from factory.run.waiting import waiting
from factory.stopping import answered
from factory.tracking import ledger
from factory.tracking.system import watching
from factory.tracking.tracker import Tracker

_POLL = 0.1  # seconds
# what the child gets unless the user has set it (docs/measurements.md)
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),  # large tensors are reused, not given back and faulted in each step
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    # what a CPU compiles for a shape and keeps, half a MiB each: those of two lengths have room, not of each
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "80",
    "LRU_CACHE_CAPACITY": "80",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONUNBUFFERED": "1",
}
# where torch reads how it allocates a GPU's memory (CUDAAllocatorConfig.h), the newest name first
_ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# of weights that are gathered and let go layer by layer, the heap would keep the holes
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20)}


def allocator(plan: Plan) -> dict[str, str]:
    """Return the environment that lets a GPU's memory segments grow, unless the user has set how torch allocates.

    Rows of many lengths then leave less memory reserved that no tensor fits into (PyTorch, CUDA semantics).
    """
    if plan.steps.load.device != "cuda" or any(name in os.environ for name in _ALLOCATORS):
        return {}
    return {_ALLOCATORS[0]: "expandable_segments:True"}


def launch(
    plan: Plan,
    folder: RunFolder,
    resume_from: Path | Literal["newest"] | None,
    screen: Screen,
    anew: Anew | None,
) -> int:
    """Executes the plan in the folder and returns the exit code. Raises UserError when the folder cannot be had.

    `newest` is the newest checkpoint of the folder that is as it was written, or what the run that is there was started
    from, if there is any. `anew` compiles other overrides, where there can be any, for advice where the memory did not
    do.
    """
    with folder.claimed() as lock:
        try:
            folder.forget_the_killed()
            passed_over = list[str]()
            if resume_from == "newest":
                start = folder.onward(passed_over.append, best=plan.settings.stage.load_best_model_at_end)
            else:
                start = resume_from
            folder.keep_start(start)  # before the plan, with which the run can be gone on with
            write_whole(folder.plan, to_yaml(plan))
            for old in (folder.events, folder.report):  # of the attempt before this one
                old.unlink(missing_ok=True)
            # before anyone follows the file
            folder.forget_metrics_after(last_logged(start))
            ledger.reopen(folder)
            try:
                screen.write_to(folder.log)
            except OSError as error:
                raise unwritable(folder.log, error) from None
            screen.print(plan_panel(plan))
            for told in passed_over:
                screen.print(told, style="yellow", soft_wrap=True)
            if start is not None:
                screen.print(f"Continuing from {start}{_gone_back_from(folder, start)}", soft_wrap=True)
            elif passed_over:
                screen.print("No checkpoint is left: starting from the first step.", style="yellow", soft_wrap=True)
            code, tracker, seen = _follow(plan, folder, start, screen, lock)
            return _finish(plan, folder, code, tracker, screen, seen, anew)
        except KeyboardInterrupt:  # before there was a child to be asked, or when it had done its work
            return _interrupted(plan, folder, screen)
        finally:
            screen.write_to(None)


def _interrupted(plan: Plan, folder: RunFolder, screen: Screen) -> int:
    """Says how to go on, and of a run that is over what its tracking did not get; the exit code."""
    over, there = folder.status() == "finished", folder.plan.exists()
    onward = f"The run in {folder.path} is finished." if over else f"To continue: {_resume(folder)}"
    screen.print(f"Interrupted. {onward if there else ''}".rstrip(), style="yellow", soft_wrap=True)
    if plan.settings.tracking.on and folder.report.exists():
        book = ledger.of(plan.settings.tracking, folder)
        told = ledger.told(book, *ledger.counts(book, folder), "interrupted before it was sent")
        if told["unsent"]:
            screen.print(_unsent(plan, folder, told), style="yellow", soft_wrap=True)
    return INTERRUPTED


def _gone_back_from(folder: RunFolder, start: Path) -> str:
    """What is said of the folder's checkpoints of later steps, where the run goes on from an earlier one of its own."""
    if start.resolve().parent != folder.checkpoints.resolve():
        return ""
    later = sum(step_of(path) > step_of(start) for path in folder.whole_checkpoints())
    return f"; {counted(later, 'checkpoint')} of later steps will go once the next is saved" if later else ""


def _resume(folder: RunFolder) -> str:
    return pasted("resume", folder.path)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the parent saw of its child: the most resident memory, in bytes, whether the system counted a kill, and
    the signals that asked it to stop.
    """

    reached: int = 0
    counted: bool = False
    asked: Sequence[int] = ()


def _follow(
    plan: Plan, folder: RunFolder, resume_from: Path | None, screen: Screen, lock: int
) -> tuple[int, Tracker, Seen]:
    """The exit code, who told MLflow, and what was seen of the child."""
    tracker, reached, kills = Tracker(plan, folder), 0, cgroup.kills()
    events, metrics = Tail(folder.events), Tail(folder.metrics)
    if resume_from is not None and metrics.lines():  # shown already, and perhaps not all of it sent
        tracker.wake()
    watched = watching(plan.settings.tracking, folder)
    with watched, _started(plan, folder, resume_from, lock) as child, _forwarding(child) as asked:
        running, told = True, False
        while running:
            reached = max(reached, memory.peak_of(child.pid))
            running = child.poll() is None
            if running:
                time.sleep(_POLL)
            if asked and not told:
                told = True
                screen.print(_stopping(folder), style="yellow")
            lines = metrics.lines()
            for line in sorted([*lines, *events.lines()], key=lambda line: line["time"]):
                show(line, screen)
            if lines:
                tracker.wake()
            if news := tracker.news():
                screen.print(news, style="yellow", soft_wrap=True)
        screen.stop_progress()
        # asked before it could listen, or for the second time: interrupted all the same
        code = INTERRUPTED if asked and child.returncode < 0 else child.returncode
        return code, tracker, Seen(reached, cgroup.kills() > kills, asked)


def _stopping(folder: RunFolder) -> str:
    how = " after this step, and saving" if _last_step(folder) == "train" else ""
    return f"Stopping{how} (once more: at once) …"


@contextmanager
def _started(plan: Plan, folder: RunFolder, resume_from: Path | None, lock: int) -> Iterator[subprocess.Popen[bytes]]:
    """The child, in a session of its own so that Ctrl-C reaches only us; it ends when its standard input closes.

    It holds the folder's lock too: whatever becomes of us, nobody writes beside it.
    """
    hardware = plan.settings.hardware
    processes, gathers = hardware.num_processes, "weights" in SPLIT[hardware.strategy]
    threads = plan.steps.train.threads
    own = {**ENVIRONMENT, **waiting(threads * processes), **(_GIVEN_BACK if gathers else {}), **allocator(plan)}
    environment = {**own, **os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.setdefault(STARTED, str(time.monotonic() - age_of(os.getpid())))
    command = [sys.executable, "-m", "factory.ranks" if processes > 1 else "factory.execute", str(folder.path)]
    if resume_from is not None:
        command.append(str(resume_from))
    with folder.log.open("ab") as log:
        child = subprocess.Popen(  # noqa: S603  this program, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            _kill(child)
        child.wait()
        if child.stdin is not None:  # ranks that it has started end when this closes
            child.stdin.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """It, and the ranks that it has started: one that hangs would never see that its input is closed."""
    below: list[psutil.Process] = []
    with suppress(psutil.Error):
        below = psutil.Process(child.pid).children(recursive=True)
    for process in (child, *below):
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """The first signal that asks for it has the child stop after its step, the second ends it.

    A lost terminal is not impatient: whoever ends the session sends SIGTERM beside it. Nothing is printed here: a
    signal may come in the middle of a line.
    """
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if sum(each != signal.SIGHUP for each in asked) > 1:
            _kill(child)
        elif len(asked) == 1:
            child.terminate()

    with answered(stop):
        yield asked


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
        whole, _, self._rest = (self._rest + new).rpartition(b"\n")
        return ledger.parsed(whole)


_LABELS = {
    "imports": "importing the libraries",
    "load": "loading the tokenizer",
    "align": "preparing the data",
    "pack": "packing",
    "attach": "loading the weights",
    "baseline": "measuring before",
    "train": "training",
    "evaluate": "measuring",
    "reload": "reading what was saved",
    "merge": "merging",
    "write": "writing",
    "publish": "publishing",
}


def show(event: dict[str, Any], screen: Screen) -> None:
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
            screen.print(f"{_rows(event['counts'])}; {counted(event['steps'], 'step')}")
        case "saved":
            screen.print(f"saved {event['path']}", style="dim")
        case "bad_update":
            screen.print(event["text"], style="yellow")


def _rows(counts: dict[str, Any]) -> str:
    """Of a stream nothing is known before it is read."""
    if not counts:
        return "rows as they come"
    return (
        f"{counts['used']:,} rows ({counts['tokens']:,} tokens, {counts['trained_tokens']:,} of them in the loss), "
        f"{sum(counts['dropped'].values()):,} dropped"
    )


_WATCHED = ("reward", "kl")  # of a stage that samples, whose loss says little


def _show_metrics(line: dict[str, Any], screen: Screen) -> None:
    speed = f"{rate(line['tokens_per_second'])} tokens/s" if line["tokens_per_second"] else ""
    loss = _number(line["loss"])
    screen.note("train", f"loss {loss}  {speed}")
    watched = "".join(f"{name} {_number(line[name])}  " for name in _WATCHED if name in line)
    learning = f"{watched}learning rate {line['learning_rate']:.2e}"
    told = f"step {line['step']:>5}  loss {loss}  {learning}  {speed}  {size(line['memory'])}"
    screen.print(told, soft_wrap=True)  # a line a step, for who reads a pipe
    held_out = {name: value for name, value in line.items() if name.startswith("eval_")}
    if held_out:
        shown = (f"{name.removeprefix('eval_')} {_number(value)}" for name, value in held_out.items())
        screen.print(f"{'':>10}  held out: {'  '.join(shown)}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _finish(
    plan: Plan,
    folder: RunFolder,
    code: int,
    tracker: Tracker,
    screen: Screen,
    seen: Seen,
    anew: Anew | None,
) -> int:
    report = read_json(folder.report) or _report_of_the_dead(plan, folder, code, seen)
    finished = report["status"] == "finished"
    advise = _advised if OUT_OF_MEMORY in report else for_the_rows if finished else None
    if advise:
        report = advise(plan, report, anew)
        with suppress(UserError):  # a full disk: the screen says it all the same
            write_whole(folder.report, as_json(report))
    clean_file(folder.log)  # of what was printed past our streams
    report = _tracked(tracker, folder, report)
    if tracker.problem:
        screen.print(_unsent(plan, folder, report["tracking"]), style="yellow", soft_wrap=True)
    if finished and (found := calibration.measured(plan, folder, look_at_machine())):
        calibration.add(found)
    code = _told(plan, folder, code, report, screen)
    if seen.asked and code != INTERRUPTED:  # it came to an end of its own: what would come after it is not begun
        how = "finished" if finished else "failed"
        screen.print(f"Interrupted. The run in {folder.path} has {how}.", style="yellow", soft_wrap=True)
        return INTERRUPTED
    return code


def _told(plan: Plan, folder: RunFolder, code: int, report: dict[str, Any], screen: Screen) -> int:
    """Says how it ended, and what can follow; the exit code."""
    again = _resume(folder)
    if report["status"] == "finished":
        screen.print(report_panel(report, folder.path))
        alone = plan.settings.tracking.parent_run is None  # a sweep says it at its end
        if alone and (onward := next_commands(plan, folder)):
            screen.print(onward, soft_wrap=True)
        return code
    if report["status"] == "interrupted":
        saved = folder.checkpoint() or (folder.model if folder.model.is_dir() else None)
        nothing = {"train": _unsaved(folder, "It was ended at once"), "export": "Nothing was written."}.get(
            plan.verb, "Answers that were given are kept."
        )
        kept = f"Saved {saved}." if saved else nothing
        screen.print(f"Interrupted. {kept} To continue: {again}", style="yellow", soft_wrap=True)
        return INTERRUPTED
    screen.print(report["error"], style="red", soft_wrap=True)
    if folder.checkpoint() is not None:
        # as it is it would meet the bad update again that it was stopped by: the error says how to go on
        bad = report.get("bad_updates", {}).get("first", [])
        onward = "" if any(each["action"] == "stopped" for each in bad) else f" To continue: {again}"
        screen.print(f"The last whole checkpoint is kept.{onward}", soft_wrap=True)
    elif _last_step(folder) == "train":
        screen.print(_unsaved(folder, "No checkpoint was saved"))
    return FAILED


def _tracked(tracker: Tracker, folder: RunFolder, report: dict[str, Any]) -> dict[str, Any]:
    """The report with what of the run was sent."""
    told = tracker.finish(report)
    if told is not None:
        report = {**report, "tracking": told}
        with suppress(UserError):  # a full disk: the screen says it all the same
            write_whole(folder.report, as_json(report))
    return report


def _unsent(plan: Plan, folder: RunFolder, told: dict[str, Any]) -> str:
    records = told["sent"] + told["unsent"]
    tracking = plan.settings.tracking
    return (
        f"{tracking.uri or tracking.tool} did not get {told['unsent']:,} of {records:,} records "
        f"({told['problem']}). The run's folder has all. To send them: {pasted('track', folder.path)}"
    )


def _unsaved(folder: RunFolder, why: str) -> str:
    done = max((line["step"] for line in Tail(folder.metrics).lines()), default=0)
    lost = f"{counted(done, 'step')} {'is' if done == 1 else 'are'} lost"
    return f"{why}: {lost}." if done else "Nothing was trained yet."


def _report_of_the_dead(plan: Plan, folder: RunFolder, code: int, seen: Seen) -> dict[str, Any]:
    """A child that ended without a report was killed, or could not write one."""
    report = blank(plan, "interrupted" if code == INTERRUPTED else "failed")
    if code == INTERRUPTED:
        report["error"] = "[interrupted] The training process was stopped before it could save."
    elif code == -signal.SIGKILL:
        report[OUT_OF_MEMORY] = spent(_last_step(folder), COUNTED if seen.counted else KILLED, seen.reached or None)
    elif words := _of_memory(folder.log):  # a library ended the process where it stood
        report[OUT_OF_MEMORY] = spent(_last_step(folder), words, seen.reached or None)
    else:
        report["error"] = f"[crashed] The training process ended with code {code}. Its own words are in {folder.log}"
    try:
        write_whole(folder.report, as_json(report))
    except UserError as problem:
        report["error"] = f"{report.get('error', '')}\n{problem}"
    return report


def _of_memory(log: Path) -> str | None:
    """The last line of the child's that says that there was no memory."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
        lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if memory.said_so(line)), None)
    return None


_LAST_WORDS = 4096  # bytes
KILLED = "the process was killed, which the system does most often for lack of memory"
COUNTED = "the system killed the process for lack of memory"


def _last_step(folder: RunFolder) -> str:
    """That the events tell the start of last."""
    started = [line["name"] for line in Tail(folder.events).lines() if line.get("event") == "start"]
    return started[-1] if started else "start"


def _advised(plan: Plan, report: dict[str, Any], anew: Anew | None) -> dict[str, Any]:
    """With what was estimated, what was there, what was reached, and what would need less, as overrides to paste."""
    spent, planned = report[OUT_OF_MEMORY], plan.estimate.memory
    reached = spent["reached_bytes"]
    changes = cheapest(plan, reached, anew) if anew else []
    lines = [f"\n    {change}" for change in changes]
    if spent["step"] in _MEASURING and plan.settings.evaluate.batch_size > 1:
        smaller = max(1, plan.settings.evaluate.batch_size // 2)
        lines.insert(0, f"\n    evaluate.batch_size={smaller}  # what is measured is no part of the estimate")
    told = refusal(
        "killed" if spent["said"] in (KILLED, COUNTED) else "out-of-memory",
        f"step={spent['step']}",
        spent["said"].rstrip("."),
        because=(
            f"the plan estimates {size(planned.total)}, {size(planned.capacity)} were free when it was made, and "
            f"{size(reached)}{_addressable()} were reached"
        ),
        fix="add one of these to the command (a new run; a resumed plan stays as it is):"
        + ("".join(lines[:_ADVICE]) or "\n    a smaller model: no known change brings the estimate down"),
    )
    known = {"estimated_bytes": planned.total, "capacity_bytes": planned.capacity}
    found = {**spent, **known, "changes": [asdict(change) for change in changes]}
    peak = {**report["memory"], "peak_bytes": report["memory"]["peak_bytes"] or reached}
    return {**report, "memory": peak, OUT_OF_MEMORY: found, "error": str(told)}


def _addressable() -> str:
    """The limit that the child inherits: what counts there is not what is resident."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f" (of {size(limit)} that a process may address, ulimit -v)"


_MEASURING = ("reference", "baseline", "evaluate", "score")
_ADVICE = 3  # lines
