"""Reads and attaches the model of a plan, as one rank of several or one process, and trains nothing."""

import gc
import json
from pathlib import Path

from safetensors.torch import save_file

from factory.execute import memory
from factory.execute.context import Run
from factory.plan.plan import read_plan
from factory.ranks.world import World
from factory.run.folder import RunFolder
from factory.steps.attach import attach
from factory.steps.load import load
from factory.steps.patch import patch
from factory.steps.quantize import quantize


def attached(folder: Path, world: World, *, whole: bool = True) -> None:
    """Execute folder/plan.yaml so far. Every rank writes bytes-N.json, rank 0 weights.safetensors where it is `whole`.

    That is what it holds of the weights, and by how much its memory grew; and the model made whole again.
    """
    run = Run(plan=read_plan(folder / "plan.yaml"), folder=RunFolder(folder), resume_from=None, world=world)
    patched, quantization = patch(run, load(run)["config"])["patched"], quantize(run)["quantization"]
    gc.collect()
    memory.give_back()
    memory.reset_peak("cpu")
    before = memory.current("cpu")
    model = attach(run, patched, quantization)["model"]
    grown = memory.peak("cpu") - before
    # DTensors have a local part, DeepSpeed's parameters a partition
    parts = [getattr(each, "ds_tensor", getattr(each, "_local_tensor", each)) for each in model.parameters()]
    held = sum(part.numel() * part.element_size() for part in parts)
    (folder / f"bytes-{world.rank}.json").write_text(json.dumps({"held": held, "grown": grown}))
    if not whole:
        return
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    with run.way.whole(model, names):
        if world.leads:
            found = {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            save_file(found | buffers, folder / "weights.safetensors")
    world.wait()
