"""Checkpoints: what a run needs to continue bit for bit, written aside and renamed when whole."""

import errno
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from factory.config.refusal import refuse
from factory.config.settings import Hardware
from factory.config.words import size
from factory.execute.context import Run
from factory.ranks.spec import ZERO
from factory.ranks.world import lost_another
from factory.run.folder import (
    MANIFEST,
    RunFolder,
    at_step,
    before_saved_again,
    best_of,
    damage,
    lost,
    read_json,
    sha256,
    step_of,
    unwritable,
)

_NOT_OF_FOLDERS = (errno.EINVAL, errno.EBADF)  # what CIFS, 9p and some of FUSE answer
_BLOCK = 4096  # bytes: what a file takes is a multiple of it, on all but the smallest file systems
_BESIDE = 64 * 1024  # what else the run writes until its next checkpoint: metrics, events, the report


def save(
    run: Run,
    write: Callable[[Path], None],
    needed: Callable[[], int],
    scaler: Any,
    state: dict[str, Any],
    *,
    keep: int | None = None,
) -> None:
    """Saves after step `state["step"]`; older ones go when this one is whole, all but that of the step `keep`.

    So do those of later steps, which the run has gone back from. All ranks call it. `write` puts the tensors into a
    folder, and `needed` are the bytes of them; rank 0 writes the rest. Raises UserError on a full disk, with the bytes
    that were needed; then the ones before are as they were.
    """
    world, target = run.world, of_step(run.folder, state["step"])
    kept = {"ranks": world.gathered(random_state(run.plan.steps.load.device)), "scaler": scaler.state_dict()}
    number = world.leaders(os.getpid())
    aside, text = run.folder.checkpoints / f".{target.name}.{number}", json.dumps(state)
    try:
        if world.leads:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        world.wait()
        write(aside)
        world.wait()
        if world.leads:
            _pickle(kept, aside / "random.pt")
            (aside / "state.json").write_text(text, encoding="utf-8")
            _finish(run, aside, target)
    except write_errors() as error:
        if world.size > 1 and lost_another(error):
            raise
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_save(run, needed() + in_blocks(pickled_bytes(kept), len(text.encode())), error) from error
    if world.leads:
        _prune(run, state["step"], keep)
    world.wait()  # whoever goes on finds it whole
    run.emit("saved", path=str(target), step=state["step"])


def _finish(run: Run, aside: Path, target: Path) -> None:
    """Makes it whole, by a manifest, and gives it its name."""
    files = [path for path in aside.rglob("*") if path.is_file()]
    names = [str(path.relative_to(aside)) for path in files]
    with ThreadPoolExecutor() as pool:  # weights and the optimizer's state are read beside each other
        sums = pool.map(sha256, files)
    manifest = {
        "files": {name: path.stat().st_size for name, path in zip(names, files, strict=True)},
        "sha256": dict(zip(names, sums, strict=True)),
        "plan_digest": run.plan.digest(),
        "layout": layout(run.plan.settings.hardware),
    }
    (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    take_place(aside, target)


def layout(hardware: Hardware) -> str:
    """How a checkpoint's tensors lie: whole, or in the parts that DeepSpeed's ranks had."""
    return f"{hardware.strategy} on {hardware.num_processes} ranks" if hardware.strategy in ZERO else "whole"


def refuse_other_layout(run: Run) -> None:
    """Raises UserError where the checkpoint that the run resumes from cannot be read by its ranks."""
    if run.resume_from is None:
        return
    there = (read_json(run.resume_from / MANIFEST) or {}).get("layout", "whole")
    if there != (here := layout(run.plan.settings.hardware)):
        raise refuse(
            "resume-other-ranks",
            f"stage.resume={run.resume_from}",
            f"it is {there}, this run is {here}",
            because="DeepSpeed's parts of weights and optimizer are of so many ranks and of that stage",
            fix="resume with the same hardware.strategy and hardware.num_processes, or start from the saved model",
        )


def write_trained(folder: Path, trained: dict[str, Any]) -> None:
    """Whole tensors; so that any number of ranks reads them."""
    from safetensors.torch import save_file

    save_file({name: value.detach() for name, value in trained.items()}, folder / "trained.safetensors")


def write_optimizer(folder: Path, state: dict[str, Any]) -> None:
    """Of whole tensors too."""
    _pickle(state, folder / "optimizer.pt")


def bytes_of_whole_tensors(trained: dict[str, Any], optimizer: dict[str, Any]) -> int:
    """What `write_trained` and `write_optimizer` take on a disk; nothing is written."""
    header = sum(len(name.encode()) + 160 for name in trained)  # at most: type, shape and place, as JSON
    return in_blocks(header + sum(value.nbytes for value in trained.values()), pickled_bytes(optimizer))


def read_whole_tensors(folder: Path, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained tensors by name, which are those that are wanted, and the optimizer's state."""
    from safetensors.torch import load_file

    trained = load_file(folder / "trained.safetensors")
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in trained.items()}:
        raise refuse(
            "resume-other-run",
            f"stage.resume={folder}",
            "it holds other tensors than this plan trains",
            because="it was saved by another run",
            fix=(
                "set what decides the result as that run had it (see its plan.yaml), or start another run "
                "without stage.resume"
            ),
        )
    return trained, _unpickled(folder / "optimizer.pt")


def _unpickled(path: Path) -> Any:
    """Tensors, on the CPU, and plain values: nothing else is made of a checkpoint. Raises UserError.

    Each rank takes to its own card what it needs of them; read to where they were, all would lie on the first.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError):
        wrong = f"{path.name} is broken, or holds more than tensors and numbers"
        raise refuse(
            "no-checkpoint",
            f"stage.resume={path.parent}",
            wrong,
            because="a run cannot be continued from half a state",
            fix="name a folder as outputs/…/checkpoints/step-000020, or set stage.resume=auto",
        ) from None


def _pickle(value: Any, path: Path) -> None:
    """Through a file of ours: an error of writing is raised as what it is."""
    import torch

    with path.open("wb") as file:
        torch.save(value, file)


def pickled_bytes(value: Any) -> int:
    import torch

    counter = _Counter()
    torch.save(value, counter)  # type: ignore[arg-type]
    return counter.bytes


def in_blocks(*files: int) -> int:
    return sum(ceil(count / _BLOCK) * _BLOCK for count in files)


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
    return at_step(folder.checkpoints, step)


def take_place(aside: Path, place: Path) -> None:
    """Gives a folder its name once it is on the disk. What had the name goes when this has it, killed or not."""
    all_to_disk(aside)
    before = before_saved_again(place)
    shutil.rmtree(before, ignore_errors=True)
    try:
        if place.exists():
            place.rename(before)
        aside.rename(place)
        to_disk(place.parent)
    finally:
        if before.exists() and not place.exists():
            before.rename(place)
        shutil.rmtree(before, ignore_errors=True)


def all_to_disk(folder: Path) -> None:
    """Before it has its name, and what had it goes: a rename can reach the disk sooner than what was written."""
    for path in (*folder.rglob("*"), folder):
        to_disk(path)


def to_disk(path: Path) -> None:
    """A file's content, or a folder's names, where its file system has a way to ask for these."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_OF_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(handle)


def write_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when a file cannot be written: torch a RuntimeError, safetensors one of its own."""
    from safetensors import SafetensorError

    return (OSError, RuntimeError, SafetensorError)


def refusal_of(error: Exception, path: Path) -> Exception:
    """One of `write_errors`: a refusal where it is of the file system, else the error as it is."""
    of_torch = isinstance(error, RuntimeError) and "inline_container" not in str(error)  # its writer of files
    return error if of_torch else unwritable(path, error)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Raises OSError where it cannot be written: of its library it is a bare Exception, which says no more."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error


def restore(run: Run, read: Callable[[Path], None], scaler: Any) -> dict[str, Any] | None:
    """Puts everything back from the checkpoint that the run resumes from, and returns its state.

    `read` puts the tensors of a folder back.
    """
    if run.resume_from is None:
        return None
    state = state_of(run.resume_from)
    if run.plan.settings.stage.load_best_model_at_end and state["best"]["step"] is not None:
        if run.world.leads:
            _bring_best(run, state["best"]["step"])
        run.world.wait()
    read(run.resume_from)
    kept = _unpickled(run.resume_from / "random.pt")
    if run.world.rank < len(kept["ranks"]):  # a rank more than there were goes on as it is seeded
        set_random_state(kept["ranks"][run.world.rank])
    if kept["scaler"]:
        scaler.load_state_dict(kept["scaler"])
    return state


def lies_elsewhere(run: Run) -> bool:
    """Whether the checkpoint that the run goes on from is in another folder than its own."""
    return run.resume_from is not None and run.resume_from.resolve().parent != run.folder.checkpoints.resolve()


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def random_state(device: str) -> dict[str, Any]:
    """Of Python, NumPy, torch and the process's own GPU, in types that torch reads back without running code."""
    import torch

    name, words, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return {**found, "cuda": torch.cuda.get_rng_state()} if device == "cuda" else found


def set_random_state(kept: dict[str, Any]) -> None:
    import torch

    random.setstate(kept["python"])
    name, words, *rest = kept["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(kept["torch"])
    if "cuda" in kept:
        torch.cuda.set_rng_state(kept["cuda"])


def _bring_best(run: Run, step: int) -> None:
    """The best checkpoint so far lies in this run's folder, or beside the one that it resumes from."""
    here = of_step(run.folder, step)
    if damage(here) is None:
        return
    assert run.resume_from is not None
    there = run.resume_from.parent / here.name
    refuse_damaged(there, f"stage.resume={run.resume_from}")
    aside = here.with_name(f".{here.name}.{os.getpid()}")
    try:
        shutil.copytree(there, aside)
        take_place(aside, here)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise unwritable(here, error) from error


def refuse_damaged(best: Path, setting: str) -> None:
    """Raises UserError where the best checkpoint so far is not what was written."""
    if (wrong := lost(best)) is not None:
        raise refuse(
            "best-missing",
            setting,
            wrong,
            because="the model that is saved at the end would be another",
            fix=(
                "put it back as it was, set stage.resume to a checkpoint that lies beside its own best, or start "
                "the run again in another folder"
            ),
        )


def _prune(run: Run, step: int, keep: int | None) -> None:
    """Of later steps than this all go: they are of what the run has gone back from, as its lines of metrics were.

    Where the best is kept, so is what was the best when another was saved that is kept: a run may go on from that one.
    """
    whole = run.folder.whole_checkpoints()
    later = [path for path in whole if step_of(path) > step]
    others = [path for path in whole if step_of(path) != keep and path not in later]
    limit = run.plan.settings.stage.save_total_limit
    needed = {best_of(path) for path in others[-limit:]} if keep is not None else set()
    for old in (*later, *(path for path in others[:-limit] if step_of(path) not in needed)):
        aside = old.with_name(f".{old.name}.{os.getpid()}")  # so that a kill leaves no half of it under its name
        old.rename(aside)
        shutil.rmtree(aside)


def _cannot_save(run: Run, files: int, error: Exception) -> Exception:
    """Where the disk is full, that; else what was raised, as a refusal if it is of the file system."""
    # the manifest and the folder take a block each
    needed, free = files + in_blocks(1, 1) + _BESIDE, shutil.disk_usage(run.folder.path).free
    if free < needed:
        return refuse(
            "disk-full",
            f"hydra.run.dir={run.folder.path}",
            f"this checkpoint needs {size(needed)} ({needed:,} bytes), {size(free)} are free ({free:,} bytes)",
            because="half a checkpoint is of no use; the one before it is untouched",
            fix="free space, then continue with `factory resume`",
            machine=True,
        )
    return refusal_of(error, run.folder.checkpoints)
