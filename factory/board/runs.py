"""Runs as the page shows them: found in their folders, started as `factory train`, stopped, gone on with, queued.

A run is a process of its own that outlives the page and the server; what is known of it is read from its folder. So a
run that a terminal started is there too.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from factory.board.children import end_of, spawned
from factory.config.line import Overrides, flags, spelt, unquoted
from factory.config.parsed import yaml_of
from factory.config.refusal import UserError, refuse
from factory.execute.__main__ import FINISHED, INTERRUPTED, REFUSED
from factory.run.folder import RunFolder, is_held, read_json, runs_in, write_whole
from factory.run.swept import SweepFolder
from factory.tracking import ledger
from factory.tracking.ledger import whole_lines

_board_stop = partial(
    refuse,
    "board-stop",
    because="another user has started it, or another machine, or it is only beginning",
    fix="press Ctrl-C where it was started, or try again in a moment",
)

State = Literal["queued", "cancelled", "starting", "running", "finished", "failed", "interrupted", "refused"]
GOING_ON: tuple[State, ...] = ("queued", "starting", "running")
_POLL = 1.0  # seconds between two looks at the queue
_FRESH = 0.5  # seconds that the list of runs holds
_LOG = 20_000  # characters at the end of a log that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A run in the list. `verb` is the plan's, or `sweep`; `started` is in seconds since the epoch."""

    folder: str
    verb: str
    state: State
    started: float
    overrides: Overrides


class Runs:
    """Of one folder, as outputs/. `own` of it is where the page keeps its queue and what its runs printed."""

    def __init__(self, outputs: Path, sweeps: Path, config_dirs: tuple[str, ...] = ()):
        self._flags = flags(config_dirs)
        self._outputs, self._sweeps = outputs, sweeps
        self._own = outputs / ".board"
        self._queue_file = self._own / "queue.json"
        self._last = self._own / "last.json"  # what was started last
        self._changing = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: tuple[float, list[Shown]] = (-_FRESH, [])

    # --- what there is

    def all(self) -> list[Shown]:
        """Newest first; as they were a moment ago, where several lists are drawn at once."""
        when, found = self._seen
        if time.monotonic() - when > _FRESH:
            found = self._found()
            self._seen = time.monotonic(), found
        return found

    def _found(self) -> list[Shown]:
        there = _Processes()
        found = [each for place in runs_in(self._outputs, self._sweeps) if (each := self._shown(place, there))]
        known = {each.folder for each in found}
        waiting = [each for each in self._asked(there) if each.folder not in known]
        return sorted([*waiting, *found], key=lambda each: each.started, reverse=True)

    def _shown(self, folder: Path, there: "_Processes") -> Shown | None:
        """None where it is gone since it was found."""
        plan = RunFolder(folder).plan
        verb, overrides = _said(plan)
        state, started = self.state(str(folder), there), _written(plan)
        if started is None:
            return None
        return Shown(folder=str(folder), verb=verb, state=state, started=started, overrides=overrides)

    def known(self, folder: str | None) -> bool:
        """Whether it is one of these: a folder that comes from a page is not taken on trust."""
        return any(each.folder == folder for each in self.all())

    def overrides(self, folder: str | None) -> Overrides | None:
        """What it was started with; None where it is none of these."""
        return next((each.overrides for each in self.all() if each.folder == folder), None)

    def state(self, folder: str, there: "_Processes | None" = None) -> State:
        """`there`: the processes of a look at many folders."""
        run, there = RunFolder(folder), there or _Processes()
        if is_held(run.lock):
            return "running"
        if any(entry["folder"] == folder for entry in self._queue()):
            return "queued"
        child = self._children.get(folder)
        begun = child is not None and child.poll() is None
        if begun and self._goes_back_to(run):
            return "starting"
        status = run.status()
        if status is not None:
            return "finished" if status == "finished" else "interrupted" if status == "interrupted" else "failed"
        if run.plan.is_file():
            return "interrupted"  # it was killed before it could say
        if begun or there.of_run(folder) is not None:
            return "starting" if not Path(folder).is_dir() else "running"
        sweep = SweepFolder(folder)
        if sweep.is_there():
            return _state_of(sweep)
        if not self._printed(folder).is_file():
            return "cancelled"  # it never began
        code = self._code(folder)
        return "refused" if code == REFUSED else "cancelled" if code == INTERRUPTED else "failed"

    def _goes_back_to(self, run: RunFolder) -> bool:
        """Whether its plan is older than the command that was started last, which will write it anew."""
        planned, started = _written(run.plan), _written(self._last)
        return planned is not None and started is not None and planned < started

    def _code(self, folder: str) -> int | None:
        """What the command for it that was given last ended with; None where it goes on, or no server saw its end."""
        child = self._children.get(folder)
        return self._entry(folder).get("code") if child is None else child.poll()

    def refusal(self, folder: str) -> str:
        """Why nothing came of the command for it that was given last: a run that goes on has an older log."""
        child = self._children.get(folder)
        refused = child is not None and child.poll() == REFUSED
        nothing = refused or (self.state(folder) in ("refused", "failed") and not _can_go_on(folder))
        return end_of(self._printed(folder), _LOG) if nothing else ""

    def inside(self, folder: str) -> str:
        """The run whose curves a folder has: of a sweep the job that began last."""
        jobs = {path.parent: _written(path) or 0.0 for path in Path(folder).glob("*/plan.yaml")}
        return str(max(jobs, key=lambda job: jobs[job])) if jobs else folder

    def metrics(self, folder: str) -> list[dict[str, Any]]:
        return whole_lines(RunFolder(folder).metrics)

    def progress(self, folder: str) -> dict[str, tuple[int, int]]:
        """Done and all of each stretch of work that was begun."""
        lines = [line for line in whole_lines(RunFolder(folder).events) if line.get("event") == "progress"]
        return {line["name"]: (line["done"], line["total"]) for line in lines}

    def gone_on_from(self, folder: str) -> int:
        """The step before the first of what goes on now: between it and an attempt before it may lie a night."""
        begun = (line for line in whole_lines(RunFolder(folder).events) if line.get("event") == "training")
        return next((line["done"] for line in begun), 0)

    def report(self, folder: str) -> dict[str, Any] | None:
        return read_json(RunFolder(folder).report)

    def in_mlflow(self, folder: str) -> tuple[str, str | None] | None:
        """The store that the run was logged to, and its id there; None where it was to none."""
        book = ledger.known(RunFolder(folder))
        return (book.uri, book.run_id) if book is not None and book.tool == "mlflow" and book.uri else None

    def log(self, folder: str) -> str:
        """The end of what the run printed; of one that was refused, why."""
        for path in (RunFolder(folder).log, self._printed(folder)):
            if path.is_file() and path.stat().st_size:
                return end_of(path, _LOG)
        return ""

    # --- what is done

    def start(self, overrides: Overrides, verb: str = "train") -> str:
        """Starts it, or puts it in the queue behind what the page has started. Returns its folder."""
        return self._put(self._outputs, lambda folder: [verb, *self._flags, *overrides, f"hydra.run.dir={folder}"])

    def sweep(self, overrides: Overrides) -> str:
        """The same of several runs in one command. Returns their folder."""
        return self._put(self._sweeps, lambda folder: ["-m", *self._flags, *overrides, f"hydra.sweep.dir={folder}"])

    def _put(self, parent: Path, words: Callable[[str], list[str]]) -> str:
        with self._changing:
            folder = self._new_folder(parent)
            entry = {"folder": folder, "words": words(folder), "asked": time.time()}
            write_whole(self._asked_file(folder), json.dumps(entry))
            self._write_queue([*self._queue(), entry])
        self.next()
        return folder

    def next(self) -> None:
        """Starts the queue's first where nothing that it waits for is still going on. Raises UserError and OSError."""
        with self._changing:
            begun = any(child.poll() is None for child in self._children.values())
            self._note()
            waiting = self._queue()
            if waiting and not begun and not self._own_alive():
                first, *rest = waiting
                self._write_queue(rest)  # first: a server that is killed in between must not have it started twice
                try:
                    self._spawn(first)
                except (OSError, UserError):
                    self._write_queue(waiting)
                    raise

    def stop(self, folder: str) -> bool:
        """Ends it as Ctrl-C does: the checkpoint is kept. Whether there was something to stop. Raises UserError."""
        with self._changing:
            waiting = self._queue()
            if any(entry["folder"] == folder for entry in waiting):
                self._write_queue([entry for entry in waiting if entry["folder"] != folder])
                return True
        process = _Processes().of_run(folder)
        if process is None:
            if is_held(RunFolder(folder).lock):
                raise _board_stop(folder, "which process it is cannot be told from here")
            return False
        try:
            os.kill(process, signal.SIGINT)
        except ProcessLookupError:  # it has ended meanwhile
            return False
        except PermissionError:
            raise _board_stop(folder, f"process {process} may not be stopped from here") from None
        return True

    def resume(self, folder: str) -> bool:
        """Goes on from the newest whole checkpoint, or with a sweep's jobs. Whether there was anything to continue."""
        with self._changing:
            if self.state(folder) not in ("interrupted", "failed") or not _can_go_on(folder):
                return False
            one = RunFolder(folder).plan.is_file()
            words = ["resume", folder] if one else ["-m", f"sweep.resume={spelt(folder)}"]
            self._write_queue([*self._queue(), {"folder": folder, "words": words}])
        self.next()
        return True

    def keep_going(self) -> None:
        """Looks at the queue for as long as the server lives."""

        def look() -> None:
            told = ""
            while True:
                time.sleep(_POLL)
                try:
                    self.next()
                    told = ""
                except (OSError, UserError) as error:  # a full disk is emptied again, and what waits goes on
                    if str(error) != told:
                        print(f"The board's queue waits: {error}", file=sys.stderr, flush=True)
                    told = str(error)

        threading.Thread(target=look, daemon=True).start()

    def _spawn(self, entry: dict[str, Any]) -> None:
        """Raises OSError and UserError, and nothing was started then."""
        folder = entry["folder"]
        write_whole(self._last, json.dumps({"folder": folder}))
        self._children[folder] = spawned(entry["words"], self._printed(folder), outlive=True)

    def _note(self) -> None:
        """What becomes of what was started last: once its folder is gone, nothing else says that it was there."""
        folder = (read_json(self._last) or {}).get("folder", "")
        entry = self._entry(folder)
        there = entry.get("there", False) or Path(folder).is_dir()
        noted = entry | {"there": there, "code": self._code(folder)}
        if entry and noted != entry:
            write_whole(self._asked_file(folder), json.dumps(noted))

    def _own_alive(self) -> bool:
        """Whether what a server before this one started still runs."""
        last = read_json(self._last)
        return last is not None and _Processes().of_run(last["folder"]) is not None

    def _new_folder(self, parent: Path) -> str:
        now = datetime.now()
        base = parent / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}"
        folder, number = base, 1
        while folder.exists() or self._asked_file(str(folder)).exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        return str(folder)

    def _asked_file(self, folder: str) -> Path:
        self._own.mkdir(parents=True, exist_ok=True)
        return self._own / f"{'_'.join(Path(folder).parts[-2:])}.json"

    def _printed(self, folder: str) -> Path:
        return self._asked_file(folder).with_suffix(".out")

    def _entry(self, folder: str) -> dict[str, Any]:
        """What the page was asked for and what is noted of it; empty where it was not asked for this."""
        entry = read_json(self._asked_file(folder)) or {}
        return entry if entry.get("folder") == folder else {}

    def _asked(self, there: "_Processes") -> Iterator[Shown]:
        """What the page was asked for, whatever became of it, but for what was there and was removed since."""
        for path in self._own.glob("*_*.json"):
            entry = read_json(path)
            if entry is None or "words" not in entry:
                continue
            state = self.state(entry["folder"], there)
            if entry.get("there") and state not in GOING_ON and not Path(entry["folder"]).is_dir():
                continue
            verb, *rest = entry["words"]
            overrides = tuple(word for word in rest if not word.startswith(("hydra.", "--")))
            yield Shown(
                folder=entry["folder"],
                verb="sweep" if verb == "-m" else verb,
                state=state,
                started=entry.get("asked") or _written(path) or 0.0,
                overrides=overrides,
            )

    def _queue(self) -> list[dict[str, Any]]:
        return (read_json(self._queue_file) or {}).get("waiting", [])

    def _write_queue(self, waiting: list[dict[str, Any]]) -> None:
        self._seen = (-_FRESH, [])
        self._own.mkdir(parents=True, exist_ok=True)
        write_whole(self._queue_file, json.dumps({"waiting": waiting}))


def _said(plan: Path) -> tuple[str, Overrides]:
    """The verb and the overrides of a plan file, from its head: the whole is not read for a list."""
    try:
        with plan.open(encoding="utf-8") as file:
            head = yaml_of("".join(takewhile(lambda line: not line.startswith("  config_dirs:"), file)))["settings"]
        verb, overrides = str(head["verb"]), tuple(map(str, head["overrides"]))
    except (OSError, ValueError, LookupError, TypeError):
        return "train", ()
    return verb, tuple(text for text in overrides if not text.startswith("hydra.run.dir="))


def _state_of(sweep: SweepFolder) -> State:
    """Of one that does not go on. A job that was refused or has not begun has no folder: its plans tell too little."""
    if sweep.is_done():
        return "finished"
    failed = any(outcome.code not in (FINISHED, INTERRUPTED) for outcome in sweep.ended().values())
    return "failed" if failed else "interrupted"


def _can_go_on(folder: str) -> bool:
    """Whether something is there that can be continued: a run or a sweep."""
    return RunFolder(folder).plan.is_file() or SweepFolder(folder).is_there()


def _written(path: Path) -> float | None:
    """When, in seconds since the epoch; None where it is not there, or no longer."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


class _Processes:
    """This machine's, as they are when they are first asked for: to list them is the longest part of a look."""

    @cached_property
    def _listed(self) -> list[Any]:
        import psutil

        return list(psutil.process_iter(["cmdline", "ppid", "cwd"]))

    def of_run(self, folder: str) -> int | None:
        """The process that leads the run in the folder: the command, not its child. None where none is there."""
        wanted = Path(folder).resolve()
        for process in self._listed:
            line, stands = process.info["cmdline"] or [], process.info["cwd"]
            executes = any(name in line for name in ("factory.execute", "factory.ranks"))
            if not executes and "factory" not in line:
                continue
            places = [unquoted(word.partition("=")[2]) for word in line if word.startswith(_NAMING)]
            if executes or "resume" in line:
                places += line[1:]
            if any(_at(place, stands) == wanted for place in places):
                return process.info["ppid"] if executes else process.pid
        return None


_NAMING = ("hydra.run.dir=", "hydra.sweep.dir=", "sweep.resume=")  # how a word starts that has a run's folder behind it


def _at(place: str, stands: str | None) -> Path | None:
    """What a process means by it that stands in this folder: two projects have an `outputs` each.

    None where that cannot be told, as of another user's process.
    """
    path = Path(place)
    return None if stands is None and not path.is_absolute() else (Path(stands or "/") / path).resolve()
