"""What an optimizer's step makes and frees, as the estimate has it and as torch counts what it allocates."""

import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from allocated import most_allocated

from factory.optimizers.spec import NEEDS_GPU, STATES, blocks, scratch, state_bytes
from factory.run import launch

SIDES = {"muon": 512}
SIDE = 256
LARGE = (1536, 1024)
GROWN = """
import ctypes, json, sys
from types import SimpleNamespace as Plan
import torch
from factory.optimizers.run import build

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def grown(name, shape, dtype):
    weight = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    plan = Plan(optimizer=name, weight_decay=0.1, learning_rate=1e-3)
    optimizer = build({"layers.0.weight": weight}, plan, Plan(layers_at="layers"))
    weight.grad = torch.ones_like(weight)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident()
    optimizer.step()
    return resident() - before

found = {}
for name in sys.argv[2].split():
    for dtype in (torch.float32, torch.bfloat16):
        grown(name, (64, 64), dtype)  # what a first step imports and compiles is there
        found[f"{name} {dtype.itemsize}"] = grown(name, json.loads(sys.argv[1]), dtype)
print(json.dumps(found))
"""


@pytest.mark.parametrize("number", [4, 2])
@pytest.mark.parametrize("name", sorted(STATES.keys() - NEEDS_GPU))
def test_scratch_is_what_a_step_allocates_on_a_cpu(name: str, number: int) -> None:
    import torch

    from factory.optimizers.run import build

    dtype = torch.float32 if number == 4 else torch.bfloat16
    side = SIDES.get(name, SIDE)
    weight = torch.nn.Parameter(torch.randn(side, side).to(dtype))
    plan: Any = SimpleNamespace(optimizer=name, weight_decay=0.1, learning_rate=1e-3)
    arch: Any = SimpleNamespace(layers_at="layers")
    optimizer = build({"layers.0.weight": weight}, plan, arch)
    for _ in range(2):  # the state is made in the first
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    packed = _packed(side) if name == "muon" else 0
    assert most_allocated(optimizer.step) - packed == pytest.approx(
        scratch(name, weight.numel(), number, "cpu"), rel=0.02, abs=2000
    )


def _packed(side: int) -> int:
    """What a product in bfloat16 packs besides its result: 129 KiB by some CPUs' instructions, a matrix by AMX's."""
    import torch

    left, right = (torch.randn(side, side).bfloat16() for _ in range(2))
    return most_allocated(lambda: left @ right) - left.nbytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.slow
def test_blocks_are_what_the_heap_grows_by() -> None:
    """The first step of a tensor in a process like a run's, where what is freed stays."""
    names = ("adamw_8bit", "ademamix", "ademamix_8bit", "lion", "lion_8bit", "adafactor")
    command = [sys.executable, "-c", GROWN, json.dumps(LARGE), " ".join(names)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **launch.ENVIRONMENT})
    grown, elements = json.loads(done.stdout), LARGE[0] * LARGE[1]
    arch: Any = SimpleNamespace(layers_at="layers")
    for name in names:
        for number in (4, 2):
            kept = state_bytes(name, {"layers.0.weight": LARGE}, arch, number)
            planned = kept + sum(blocks(name, elements, number, "cpu"))
            assert grown[f"{name} {number}"] == pytest.approx(planned, rel=0.05), (name, number)
