"""Each rank reads its share of the weights: what all hold together is what one process reads, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from attaching import attached
from conftest import compiled
from safetensors.torch import load_file
from several import launched, planned
from test_equal import HAS_DEEPSPEED, needs_deepspeed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from factory.look.machine import look_at_machine
from factory.plan import to_yaml
from factory.ranks.fsdp import _on_host
from factory.ranks.world import World

STRATEGIES = ("fsdp", "zero3") if HAS_DEEPSPEED else ("fsdp",)
STRATEGIES_AS_THEY_ARE = ["fsdp", pytest.param("zero3", marks=needs_deepspeed)]
MODELS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "experts": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "uneven": {"vocab_size": 513, "intermediate_size": 65},
}
CASES = [("full", name) for name in MODELS] + [("lora", "plain"), ("lora", "tied")]
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 4096}


def write(folder: Path, strategy: str, ranks: int, model: Path, method: str, precision: str = "fp32") -> Path:
    folder.mkdir(parents=True)
    plan = planned(strategy, ranks, f"model.path={model}", f"method={method}", f"precision={precision}")
    assert plan.steps.train.ranks.sharded_loading is (strategy in ("fsdp", "zero3"))
    (folder / "plan.yaml").write_text(to_yaml(plan))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save(folder / name, **changes) for name, changes in {**MODELS, "large": LARGE}.items()}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    """The folder of every case, read by two ranks."""
    where = tmp_path_factory.mktemp("read")
    folders = [
        write(where / f"{strategy}-{method}-{name}", strategy, 2, models[name], method)
        for strategy in STRATEGIES
        for method, name in CASES
    ]
    launched(2, Path(__file__).parent / "attaching.py", *map(str, folders))
    return where


@pytest.mark.parametrize("strategy", STRATEGIES_AS_THEY_ARE)
@pytest.mark.parametrize(("method", "name"), CASES)
def test_all_shares_together_are_what_one_process_reads(
    strategy: str, method: str, name: str, read: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """Adapters' starts and buffers that no file has included."""
    attached(write(tmp_path / "one", "none", 1, models[name], method), World())
    found, wanted = (
        load_file(folder / "weights.safetensors") for folder in (read / f"{strategy}-{method}-{name}", tmp_path / "one")
    )
    assert found.keys() == wanted.keys()
    assert [key for key, value in found.items() if not value.equal(wanted[key])] == []


@pytest.mark.parametrize("strategy", STRATEGIES_AS_THEY_ARE)
@pytest.mark.parametrize("name", MODELS)
def test_a_rank_holds_its_share(strategy: str, name: str, read: Path, models: dict[str, Path]) -> None:
    whole = sum(value.nbytes for value in load_file(models[name] / "model.safetensors").values())
    held = [
        json.loads((read / f"{strategy}-full-{name}" / f"bytes-{rank}.json").read_text())["held"] for rank in (0, 1)
    ]
    assert max(held) < 0.55 * whole


def test_no_rank_has_room_for_the_whole(models: dict[str, Path], tmp_path: Path) -> None:
    """A process maps what it reads of the float32 file, and holds half of that as bfloat16."""
    grown = {}
    for strategy in ("ddp", *STRATEGIES):
        folder = write(tmp_path / strategy, strategy, 4, models["large"], "lora", "bf16")
        launched(4, Path(__file__).parent / "attaching.py", str(folder))
        each = [json.loads((folder / f"bytes-{rank}.json").read_text())["grown"] / 2**20 for rank in range(4)]
        grown[strategy] = max(each)
    file = (models["large"] / "model.safetensors").stat().st_size / 2**20
    assert grown.pop("ddp") > file
    assert max(grown.values()) < file


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
    share = torch.nn.Parameter(DTensor(torch.ones(3, 2), spec, requires_grad=trained), requires_grad=trained)
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
