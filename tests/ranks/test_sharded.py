"""Where each rank reads its share of the weights, and what a plan says of it (that they do is in test_equal.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compiled
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from factory.plan.inspect.machine import look_at_machine
from factory.ranks.fsdp import _on_host


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_a_plan_counts_shares_or_says_why_not(strategy: str, tiny_model: Path) -> None:
    shape = ("hardware=h100_80gb", "hardware.num_processes=4", f"hardware.strategy={strategy}", "precision=bf16")
    shared, whole = (
        compiled(f"model.path={tiny_model}", *shape, *method, training=False)
        for method in (("method=lora",), ("method=lora", "method.dora=true"))
    )
    assert shared.steps.train.ranks.sharded_loading and not whole.steps.train.ranks.sharded_loading
    said = "each process reads the whole weights before they are split"
    assert not any(said in note for note in shared.notes) and any(said in note for note in whole.notes)
    bytes_of_all = 2 * shared.estimate.parameters.total
    assert bytes_of_all / 4 <= shared.estimate.memory.instants["reading"] < bytes_of_all / 2


@pytest.mark.parametrize("trained", [False, True])
def test_an_offloaded_share_lies_in_the_hosts_memory(trained: bool) -> None:
    """FSDP refuses one on a card; the mesh, and so the group that shares it, stays the cards'."""
    mesh = DeviceMesh("cuda", [0], _init_backend=False, _rank=0)
    spec = DTensorSpec(mesh, (Shard(0),), tensor_meta=TensorMeta(torch.Size((3, 2)), (2, 1), torch.float32))
    share: Any = torch.nn.Parameter(DTensor(torch.ones(3, 2), spec, requires_grad=trained), requires_grad=trained)
    moved = _on_host(share)
    assert isinstance(moved, DTensor) and isinstance(moved, torch.nn.Parameter)
    assert moved.device.type == moved._local_tensor.device.type == "cpu"
    assert moved._spec == share._spec and moved.requires_grad is trained
    assert moved._local_tensor.equal(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("device", "packages", "reason"),
    [
        ("cpu", {"transformers": "5.23.0", "torch": "2.13.0+cpu"}, None),
        ("cpu", {"transformers": "5.22.2", "torch": "2.13.0+cpu"}, "transformers 5.22.2 reads none by a plan"),
        ("cpu", {"torch": "2.13.0+cu130", "cuda": "13.0"}, "the device that torch is built for"),
        ("cpu", {"torch": "2.13.0"}, "the device that torch is built for"),  # PyPI's: CUDA's on Linux, MPS on a Mac
        ("h100_80gb", {"torch": "2.13.0+cu130", "cuda": "13.0"}, None),
    ],
)
def test_libraries_that_would_read_elsewhere_read_the_whole(
    device: str, packages: dict[str, str], reason: str | None, tiny_model: Path, machine: Callable[..., None]
) -> None:
    machine(packages={**look_at_machine().packages, **packages})
    shape = (f"hardware={device}", "hardware.num_processes=2", "hardware.strategy=fsdp", "precision=fp32")
    plan = compiled(f"model.path={tiny_model}", "method=lora", *shape, training=False)
    assert plan.steps.train.ranks.sharded_loading is (reason is None)
    assert any(str(reason) in note for note in plan.notes) is (reason is not None)
