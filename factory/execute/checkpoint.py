"""Checkpoints: what a run needs to continue bit for bit, written aside and renamed when whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.execute.context import Run
from factory.plan import Ranks
from factory.ranks.spec import ZERO
from factory.ranks.world import lost_another
from factory.refusal import refuse
from factory.run.folder import MANIFEST, is_whole, read_json, unwritable
from factory.words import size


def save(run: Run, write: Callable[[Path], None], scaler: Any, state: dict[str, Any], needed: int) -> Path:
    """Saves after step `state["step"]`; older ones go when this one is whole. Raises UserError on a full disk.

    All ranks call it. `write` puts the tensors into a folder; rank 0 writes the rest. `needed`: bytes, about.
    """
    import torch

    world, target = run.world, run.folder.checkpoints / f"step-{state['step']:06d}"
    random = world.gathered(torch.get_rng_state())
    number, there = world.leaders((os.getpid(), is_whole(target)))
    if there:
        return target
    aside = run.folder.checkpoints / f".{target.name}.{number}"
    try:
        if world.leads:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        world.wait()
        write(aside)
        world.wait()
        if world.leads:
            own = {"torch": random[0], "others": random[1:], **_cuda_state(), "scaler": scaler.state_dict()}
            torch.save(own, aside / "random.pt")
            (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
            _finish(run, aside, target)
    except write_errors() as error:
        if world.size > 1 and lost_another(error):
            raise
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_save(run, needed, error) from error
    if world.leads:
        _prune(run)
    run.emit("saved", path=str(target), step=state["step"])
    return target


def _finish(run: Run, aside: Path, target: Path) -> None:
    """Makes it whole, by a manifest, and gives it its name."""
    sizes = {str(path.relative_to(aside)): path.stat().st_size for path in aside.rglob("*") if path.is_file()}
    manifest = {"files": sizes, "plan_digest": run.plan.digest(), "layout": layout(run.plan.steps.train.ranks)}
    (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def layout(ranks: Ranks) -> str:
    """How a checkpoint's tensors lie: whole, or in the parts that DeepSpeed's ranks had."""
    return f"{ranks.strategy} on {ranks.processes} ranks" if ranks.strategy in ZERO else "whole"


def refuse_other_layout(run: Run) -> None:
    """Raises UserError where the checkpoint that the run resumes from cannot be read by its ranks."""
    if run.resume_from is None:
        return
    there = (read_json(run.resume_from / MANIFEST) or {}).get("layout", "whole")
    if there != (here := layout(run.plan.steps.train.ranks)):
        raise refuse("resume-other-ranks", f"stage.resume={run.resume_from}", f"it is {there}, this run is {here}")


def write_whole_tensors(folder: Path, trained: dict[str, Any], optimizer: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({name: value.detach() for name, value in trained.items()}, folder / "trained.safetensors")
    torch.save(optimizer, folder / "optimizer.pt")


def read_whole_tensors(folder: Path, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained tensors by name, which are those that are wanted, and the optimizer's state."""
    import torch
    from safetensors.torch import load_file

    trained = load_file(folder / "trained.safetensors")
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in trained.items()}:
        raise refuse("resume-other-run", f"stage.resume={folder}", "it holds other tensors than this plan trains")
    return trained, torch.load(folder / "optimizer.pt", weights_only=True)


def write_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise when a file cannot be written: torch a RuntimeError, safetensors one of its own."""
    from safetensors import SafetensorError

    return (OSError, RuntimeError, SafetensorError)


def restore(run: Run, read: Callable[[Path], None], scaler: Any) -> dict[str, Any] | None:
    """Puts everything back from the checkpoint that the run resumes from, and returns its state.

    `read` takes the tensors from the folder that `write` of `save` put them into.
    """
    if run.resume_from is None:
        return None
    import torch

    read(run.resume_from)
    random = torch.load(run.resume_from / "random.pt", weights_only=True)
    states = [random["torch"], *random["others"]]
    if run.world.rank < len(states):  # a rank more than there were goes on as it is seeded
        torch.set_rng_state(states[run.world.rank])
    if "cuda" in random and run.world.size == 1:
        torch.cuda.set_rng_state_all(random["cuda"])
    if random["scaler"]:
        scaler.load_state_dict(random["scaler"])
    return state_of(run.resume_from)


def state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def _cuda_state() -> dict[str, Any]:
    import torch

    return {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}


def _prune(run: Run) -> None:
    for old in run.folder.whole_checkpoints()[: -run.plan.steps.train.save_total_limit]:
        shutil.rmtree(old)


def _cannot_save(run: Run, needed: int, error: Exception) -> Exception:
    free = shutil.disk_usage(run.folder.path).free
    if isinstance(error, OSError) and free >= needed:
        return unwritable(run.folder.checkpoints, error)
    return refuse(
        "disk-full",
        f"hydra.run.dir={run.folder.path}",
        f"a checkpoint needs about {size(needed)}, {size(free)} are free",
    )
