"""A run's folder: its files, its lock, its checkpoints."""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from factory import locks
from factory.config.parsed import json_of, yaml_of
from factory.config.refusal import Refusal, UserError, refusal, refuse

MANIFEST = "manifest.json"
_LOCKS = Path("/proc/locks")
OUTPUTS, SWEEPS = Path("outputs"), Path("multirun_sweeps")  # where runs and sweeps lie by default
_DEEPEST = 3  # folders from there to a run's, or to a sweep's
_SEEN = "[!.]*"  # in .board may lie what was uploaded
_SHOWN = 3
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
_ASIDE = re.compile(r"\..+\.\d+")  # what is written beside its place, by a process of this id


class RunFolder:
    """The names of a run's files (design: one home for each)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.plan = self.path / "plan.yaml"
        self.report = self.path / "report.json"
        self.metrics = self.path / "metrics.jsonl"
        self.reference = self.path / "reference.npz"
        self.events = self.path / "events.jsonl"
        self.log = self.path / "run.log"
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation"  # rows that were measured, in *.jsonl
        self.tracking = self.path / "tracking.json"  # what of it was logged elsewhere
        self.system = self.path / "system.jsonl"  # what the machine did meanwhile
        self.start = self.path / "start.json"  # the checkpoint of another folder that it was started from, if any
        self.lock = self.path / ".lock"

    def plan_digest(self) -> str | None:
        """The digest of the run that is here, None where there is none that can be read."""
        try:
            tree = yaml_of(self.plan.read_bytes())
        except (OSError, ValueError):
            return None
        return tree.get("digest") if isinstance(tree, dict) else None

    def status(self) -> str | None:
        return (read_json(self.report) or {}).get("status")

    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        return next(reversed(self.whole_checkpoints()), None)

    def whole_checkpoints(self) -> list[Path]:
        """Oldest first."""
        return [path for path in self._saved() if is_whole(path)]

    def sound_checkpoint(self, tell: Callable[[str], None], *, best: bool = False) -> Path | None:
        """The newest whole checkpoint that is as it was written, by its checksums; `tell` hears of newer ones.

        `best`: so must be the best so far that it names, which is put back at the end.
        """
        for path in reversed(self._saved()):
            if (wrong := damage(path) or (best_lost(path) if best else None)) is None:
                return path
            tell(f"{path} is damaged ({wrong}) and passed over.")
        return None

    def onward(self, tell: Callable[[str], None], *, best: bool) -> Path | None:
        """Where a run that was cut short goes on: at its newest sound checkpoint, else where it was started from.

        None: at the first step. Raises UserError where that would be another run, or would give up sound checkpoints.
        """
        if (own := self.sound_checkpoint(tell, best=best)) is not None:
            return own
        if self.start.exists():
            return self._started_from()
        if best and (newest := self.sound_checkpoint(lambda _: None)) is not None:
            raise refuse(
                "best-missing",
                f"hydra.run.dir={self.path}",
                f"of {newest} {best_lost(newest)}",
                because="the model that is saved at the end would be another",
                fix=(
                    "put it back as it was, set stage.resume to a checkpoint that lies beside its own best, or start "
                    "the run again in another folder"
                ),
            )
        return None

    def keep_start(self, checkpoint: Path | None) -> None:
        """What the run is started from, where that lies in another folder: until it saves it has none of its own."""
        if checkpoint is None:
            self.start.unlink(missing_ok=True)
        elif (found := checkpoint.resolve()).parent != self.checkpoints.resolve():
            write_whole(self.start, json.dumps({"checkpoint": str(found)}))

    def _started_from(self) -> Path:
        start = Path(str((read_json(self.start) or {}).get("checkpoint")))
        wrong = damage(start) if start.is_dir() else "it is gone"
        if wrong is None and (read_json(start / MANIFEST) or {}).get("plan_digest") != self.plan_digest():
            wrong = "another run has saved it since"
        if wrong is not None:
            raise refuse(
                "start-missing",
                f"hydra.run.dir={self.path}",
                f"it was started from {start}: {wrong}",
                because="it has saved nothing of its own yet, and from the first step it would be another run",
                fix="put the checkpoint back as it was, or start the run again in another folder",
            )
        return start

    def _saved(self) -> list[Path]:
        """Oldest first, whole or not."""
        return sorted(self.checkpoints.glob("step-*[0-9]"), key=step_of)

    def forget_the_killed(self) -> None:
        """Removes what processes were writing beside its place when they were killed. For who holds the folder."""
        for path in (*self.checkpoints.glob(".step-*.0"), *self.path.glob(before_saved_again(self.model).name)):
            if not (place := path.with_name(path.stem.removeprefix("."))).exists():  # killed between two renames
                path.rename(place)
        for path in (each for place in (self.path, self.checkpoints, self.evaluation) for each in place.glob(".*")):
            if _ASIDE.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def forget_metrics_after(self, step: int) -> None:
        """What was logged after a checkpoint is computed, and logged, again. A file that is right is left alone."""
        if not self.metrics.exists():
            return
        text = self.metrics.read_text(encoding="utf-8")
        kept = []
        for line in text.splitlines():
            try:
                kept += [line] if json.loads(line)["step"] <= step else []
            except (ValueError, KeyError):  # the line that a kill cut short
                continue
        if (whole := "".join(f"{line}\n" for line in kept)) != text:
            write_whole(self.metrics, whole)

    @contextmanager
    def claimed(self) -> Iterator[int]:
        """Holds the folder for this process, and for those that are given the lock's descriptor: until all have ended.

        Raises UserError when it cannot be written or another holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self.lock.open("w")
        except OSError as error:
            raise unwritable(self.path, error) from None
        with lock:
            try:
                locks.lock(lock, wait=False)  # of a file system without locks no other folder would have one
            except BlockingIOError:
                raise refuse(
                    "folder-in-use",
                    str(self.path),
                    "another process is writing into it",
                    because="two writers would mix their files",
                    fix="wait for it, or set another hydra.run.dir (of a sweep hydra.sweep.dir)",
                ) from None
            yield lock.fileno()


def fresh(folder: str) -> str:
    """The default folder is named by the second: another run may have been as quick."""
    number, path = 1, folder
    while Path(path).exists():
        number += 1
        path = f"{folder}-{number}"
    return path


def is_held(lock: Path) -> bool:
    """Whether a process holds the run's folder (RunFolder.claimed).

    A lock of ours might be in the way of who wants the folder: it is tried only where the system lists one of it.
    """
    try:
        number = lock.stat().st_ino
        if _LOCKS.is_file() and f":{number} " not in _LOCKS.read_text():
            return False
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def before_saved_again(folder: Path) -> Path:
    """Where a checkpoint or a model lies until another has its name; no process has this id."""
    return folder.with_name(f".{folder.name}.0")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def last_logged(checkpoint: Path | None) -> int:
    """The last step whose line in metrics.jsonl stays as it is when a run goes on from the checkpoint.

    A step whose evaluation was interrupted gets its line afterwards.
    """
    if checkpoint is None:
        return 0
    state = read_json(checkpoint / "state.json") or {}
    return state["step"] - (state.get("line") is not None)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint is there with the size that its manifest (written last) names."""
    manifest = read_json(checkpoint / MANIFEST)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in manifest["files"].items()
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None where every file is what was written. All of it is read."""
    if not is_whole(checkpoint):
        return "it is not whole"
    sums = (read_json(checkpoint / MANIFEST) or {}).get("sha256", {})
    changed = next((name for name, wanted in sums.items() if sha256(checkpoint / name) != wanted), None)
    return changed and f"{changed} is not what was written"


def at_step(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:06d}"


def best_of(checkpoint: Path) -> int | None:
    """The step of the best so far when it was saved."""
    return (read_json(checkpoint / "state.json") or {}).get("best", {}).get("step")


def best_lost(checkpoint: Path) -> str | None:
    """What is wrong with the best so far of a checkpoint that is sound itself; None: nothing."""
    step = best_of(checkpoint)
    return None if step in (None, step_of(checkpoint)) else lost(at_step(checkpoint.parent, step))


def lost(best: Path) -> str | None:
    """What is wrong with the best checkpoint so far, None where it is what was written."""
    wrong = damage(best) if best.is_dir() else "it is gone"
    return wrong and f"its best checkpoint so far was {best}: {wrong}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_config(adapter: str | Path) -> Path:
    """In an adapter's folder: the config.json that its base must be read with, where its positions were stretched.

    It can't lie beside adapter_config.json: there transformers takes it as the sign of whole weights.
    """
    return Path(adapter) / "base" / "config.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object, None where it is missing or broken."""
    try:
        value = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_whole(path: Path, text: str) -> None:
    """Writes aside and renames, so that a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        aside.unlink(missing_ok=True)


def runs_in(outputs: Path = OUTPUTS, sweeps: Path = SWEEPS) -> list[Path]:
    """The folders of the runs under these, in no order. A job lies one folder below its sweep."""
    depths = [(home, deep + 1) for home, more in ((outputs, 0), (sweeps, 1)) for deep in range(_DEEPEST + more)]
    return [path.parent for home, deep in depths for path in home.glob("/".join([*deep * [_SEEN], "plan.yaml"]))]


def runs_here() -> list[Path]:
    """The folders of the runs under the working one, oldest first."""
    return sorted(runs_in(), key=lambda path: (_written(RunFolder(path).plan), path))


def _written(path: Path) -> float:
    """When, in seconds since the epoch; 0 where it is gone since it was listed, or may not be asked."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_here(*, saved: bool = False) -> str:
    """`the last runs here: A, B; ` for what names a run that is not there, or nothing. `saved`: those with a model."""
    there = (folder for folder in reversed(runs_here()) if not saved or RunFolder(folder).model.is_dir())
    found = [str(folder) for folder in islice(there, _SHOWN)]
    return f"the last runs here: {', '.join(found)}; " if found else ""


def is_mlflow_id(text: str) -> bool:
    return _MLFLOW_ID.fullmatch(text) is not None


def is_no_store(uri: str) -> bool:
    """Whether it is an sqlite file that is not there: MLflow would make one."""
    file = sqlite_file(uri)
    return file is not None and not file.exists()


def sqlite_file(uri: str) -> Path | None:
    """None of another address. What follows a question mark are options, as in `sqlite:///mlflow.db?timeout=30`."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme == "sqlite" else None


def open_as(file: Path) -> None:
    """Lets those read all of a file's folder who may read the file: safetensors writes for the owner alone."""
    mode = stat.S_IMODE(file.stat().st_mode)
    for path in file.parent.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def taken(path: str | Path, *, finished: bool) -> Refusal:
    """Of a folder that another run would be written into."""
    setting, onward = f"hydra.run.dir={path}", f"continue it by `factory resume {shlex.quote(str(path))}`, or "
    if finished:
        return _folder_taken(setting, "there is a finished run in it", onward="")
    return _folder_taken(setting, "there is a run in it", onward=onward)


def unwritable(path: Path, error: Exception) -> UserError:
    why = getattr(error, "strerror", None) or error
    return refuse(
        "cannot-write",
        f"path={path}",
        f"it cannot be written ({why})",
        because="a run that cannot keep its results would be lost",
        fix="free space, or set hydra.run.dir (of a sweep hydra.sweep.dir) to a folder that can be written",
        machine=True,
    )


def _folder_taken(setting: str, wrong: str, onward: str) -> Refusal:
    return refusal(
        "folder-taken",
        setting,
        wrong,
        because="its results would be overwritten",
        fix=f"{onward}set another hydra.run.dir, of a sweep another hydra.sweep.dir",
    )
