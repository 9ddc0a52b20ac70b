"""One rank of several, or one process: reads and attaches the model of each plan, and trains nothing.

`torchrun … attaching.py FOLDER …`: each folder has plan.yaml. Rank 0 writes weights.safetensors there, the model made
whole again, and every rank bytes-N.json: what it held of the weights, and by how much its memory grew.
"""

import gc
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from factory.execute import memory
from factory.execute.context import Run
from factory.plan import read_plan
from factory.ranks.world import World, from_environment
from factory.run.folder import RunFolder
from factory.steps.attach import attach
from factory.steps.load import load
from factory.steps.patch import patch
from factory.steps.quantize import quantize


def attached(folder: Path, world: World) -> None:
    run = Run(plan=read_plan(folder / "plan.yaml"), folder=RunFolder(folder), resume_from=None, world=world)
    patched, quantization = patch(run, load(run)["config"])["patched"], quantize(run)["quantization"]
    gc.collect()
    memory.reset_peak("cpu")
    before = memory.current("cpu")
    model = attach(run, patched, quantization)["model"]
    grown = memory.peak("cpu") - before
    # DTensors have a local part, DeepSpeed's parameters a partition
    parts = [getattr(each, "ds_tensor", getattr(each, "_local_tensor", each)) for each in model.parameters()]
    held = sum(part.numel() * part.element_size() for part in parts)
    (folder / f"bytes-{world.rank}.json").write_text(json.dumps({"held": held, "grown": grown}))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    with run.way.whole(model, names):
        if world.leads:
            whole = {name: value.detach().clone() for name, value in model.named_parameters(remove_duplicate=False)}
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            save_file(whole | buffers, folder / "weights.safetensors")
    world.wait()


def main(folders: list[str]) -> None:
    world = from_environment()
    world.join("cpu", read_plan(Path(folders[0]) / "plan.yaml").steps.train.ranks)
    for folder in folders:
        attached(Path(folder), world)
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
