"""Checkpoints: what a run needs to continue bit for bit, written aside and renamed when whole."""

import io
import json
import os
import random
import shutil
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from factory.execute.context import Run
from factory.refusal import refuse
from factory.run.folder import MANIFEST, RunFolder, is_whole, unwritable
from factory.words import size

_BLOCK = 4096  # bytes: what a file takes is a multiple of it, on all but the smallest file systems
_BESIDE = 64 * 1024  # what else the run writes until its next checkpoint: metrics, events, the report


def save(
    run: Run, trained: dict[str, Any], optimizer: Any, scaler: Any, state: dict[str, Any], *, keep: int | None = None
) -> Path:
    """Saves after step `state["step"]`; older ones go when this one is whole, all but that of the step `keep`.

    Raises UserError on a full disk, with the bytes that were needed; then the ones before are as they were.
    """
    target = of_step(run.folder, state["step"])
    if is_whole(target):
        return target
    aside = run.folder.checkpoints / f".{target.name}.{os.getpid()}"
    written = _Written(trained, optimizer, scaler, json.dumps(state))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        written.to(aside)
        sizes = {path.name: path.stat().st_size for path in aside.iterdir()}
        (aside / MANIFEST).write_text(json.dumps({"files": sizes, "plan_digest": run.plan.digest()}), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _to_disk(run.folder.checkpoints)
    except write_errors() as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_save(run, written, error) from error
    _prune(run, keep)
    run.emit("saved", path=str(target), step=state["step"])
    return target


class _Written:
    """The files of a checkpoint."""

    def __init__(self, trained: dict[str, Any], optimizer: Any, scaler: Any, state: str):
        self._tensors = {name: value.detach() for name, value in trained.items()}
        self._optimizer, self._scaler, self._state = optimizer, scaler, state

    def to(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file(self._tensors, folder / "trained.safetensors")
        for name, value in self._pickled().items():
            with (folder / name).open("wb") as file:
                torch.save(value, file)
        (folder / "state.json").write_text(self._state, encoding="utf-8")

    def _pickled(self) -> dict[str, Any]:
        return {
            "optimizer.pt": self._optimizer.state_dict(),
            "random.pt": {**_random_state(), "scaler": self._scaler.state_dict()},
        }

    def bytes(self) -> int:
        """What it takes on a disk, in whole blocks, and what the run writes beside it; nothing is written."""
        import torch

        header = sum(len(name.encode()) + 160 for name in self._tensors)  # at most: type, shape and place, as JSON
        files = [header + sum(value.nbytes for value in self._tensors.values()), len(self._state.encode()), _BLOCK]
        for value in self._pickled().values():
            counter = _Counter()
            torch.save(value, counter)  # type: ignore[arg-type]
            files.append(counter.bytes)
        return sum(ceil(count / _BLOCK) * _BLOCK for count in (*files, _BLOCK)) + _BESIDE  # and the folder itself


class _Counter(io.RawIOBase):
    """A file that keeps nothing but its length."""

    def __init__(self) -> None:
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        count = memoryview(data).nbytes
        self.bytes += count
        return count


def of_step(folder: RunFolder, step: int | None) -> Path:
    assert step is not None
    return folder.checkpoints / f"step-{step:06d}"


def _to_disk(path: Path) -> None:
    """So that a checkpoint before it may go: a rename can reach the disk sooner than what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when a file cannot be written: torch a RuntimeError, safetensors one of its own."""
    from safetensors import SafetensorError

    return (OSError, RuntimeError, SafetensorError)


def restore(run: Run, wanted: dict[str, Any], optimizer: Any, scaler: Any) -> dict[str, Any] | None:
    """Puts everything back from the checkpoint that the run resumes from, and returns its state.

    `wanted` are the trained tensors by name.
    """
    if run.resume_from is None:
        return None
    import torch

    state = state_of(run.resume_from)
    if run.plan.steps.train.load_best_model_at_end and state["best"]["step"] is not None:
        _bring_best(run, state["best"]["step"])
    load(run.resume_from, wanted, optimizer)
    kept = torch.load(run.resume_from / "random.pt", weights_only=True)
    _set_random_state(kept)
    if kept["scaler"]:
        scaler.load_state_dict(kept["scaler"])
    return state


def load(path: Path, wanted: dict[str, Any], optimizer: Any) -> None:
    """The trained tensors (`wanted`, by name) and the optimizer's state of a checkpoint. Raises UserError."""
    import torch
    from safetensors.torch import load_file

    trained = load_file(path / "trained.safetensors")
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in trained.items()}:
        raise refuse("resume-other-run", f"stage.resume={path}", "it holds other tensors than this plan trains")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(trained[name])
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def _random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch and every GPU, in types that torch reads back without running code."""
    import torch

    name, words, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return {**found, "cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else found


def _set_random_state(kept: dict[str, Any]) -> None:
    import torch

    random.setstate(kept["python"])
    name, words, *rest = kept["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(kept["torch"])
    if "cuda" in kept:
        torch.cuda.set_rng_state_all(kept["cuda"])


def _bring_best(run: Run, step: int) -> None:
    """The best checkpoint so far lies in this run's folder, or beside the one that it resumes from."""
    here = of_step(run.folder, step)
    if is_whole(here):
        return
    assert run.resume_from is not None
    there = run.resume_from.parent / here.name
    if not is_whole(there):
        raise refuse("best-missing", f"stage.resume={run.resume_from}", f"its best checkpoint so far, {there}, is gone")
    aside = here.with_name(f".{here.name}.{os.getpid()}")
    try:
        shutil.copytree(there, aside)
        aside.rename(here)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise unwritable(here, error) from error


def _prune(run: Run, keep: int | None) -> None:
    best = None if keep is None else of_step(run.folder, keep)
    others = [path for path in run.folder.whole_checkpoints() if path != best]
    for old in others[: -run.plan.steps.train.save_total_limit]:
        shutil.rmtree(old)


def _cannot_save(run: Run, written: _Written, error: Exception) -> Exception:
    """Where the disk is full, that; else what was raised, as a refusal if it is of the file system."""
    needed, free = written.bytes(), shutil.disk_usage(run.folder.path).free
    if free < needed:
        return refuse(
            "disk-full",
            f"hydra.run.dir={run.folder.path}",
            f"this checkpoint needs {size(needed)} ({needed:,} bytes), {size(free)} are free ({free:,} bytes)",
        )
    of_torch = isinstance(error, RuntimeError) and "inline_container" not in str(error)  # its writer of files
    return error if of_torch else unwritable(run.folder.checkpoints, error)
