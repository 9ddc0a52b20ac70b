"""Checkpoints: what a run needs to continue bit for bit, written aside and renamed when whole."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from factory.execute.context import Run
from factory.refusal import refuse
from factory.run.folder import MANIFEST, is_whole, unwritable
from factory.words import size


def save(run: Run, trained: dict[str, Any], optimizer: Any, scaler: Any, state: dict[str, Any]) -> Path:
    """Saves after step `state["step"]`; older ones go when this one is whole. Raises UserError on a full disk.

    All ranks call it, and rank 0 writes.
    """
    import torch
    from safetensors.torch import save_file

    target = run.folder.checkpoints / f"step-{state['step']:06d}"
    random = run.world.gathered(torch.get_rng_state())
    if is_whole(target) or not run.world.leads:
        return target
    aside = run.folder.checkpoints / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = {name: value.detach() for name, value in trained.items()}
        save_file(tensors, aside / "trained.safetensors")
        torch.save(optimizer.state_dict(), aside / "optimizer.pt")
        torch.save(
            {"torch": random[0], "others": random[1:], **_cuda_state(), "scaler": scaler.state_dict()},
            aside / "random.pt",
        )
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in aside.iterdir()}
        (aside / MANIFEST).write_text(json.dumps({"files": sizes, "plan_digest": run.plan.digest()}), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except write_errors() as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise _cannot_save(run, trained, error) from error
    _prune(run)
    run.emit("saved", path=str(target), step=state["step"])
    return target


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
    from safetensors.torch import load_file

    trained = load_file(run.resume_from / "trained.safetensors")
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in trained.items()}:
        raise refuse(
            "resume-other-run", f"stage.resume={run.resume_from}", "it holds other tensors than this plan trains"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(trained[name])
    optimizer.load_state_dict(torch.load(run.resume_from / "optimizer.pt", weights_only=True))
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


def _cannot_save(run: Run, trained: dict[str, Any], error: Exception) -> Exception:
    needed = 3 * sum(value.nbytes for value in trained.values())  # the tensors and AdamW's two moments
    free = shutil.disk_usage(run.folder.path).free
    if isinstance(error, OSError) and free >= needed:
        return unwritable(run.folder.checkpoints, error)
    return refuse(
        "disk-full",
        f"hydra.run.dir={run.folder.path}",
        f"a checkpoint needs about {size(needed)}, {size(free)} are free",
    )
