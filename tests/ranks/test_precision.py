"""Mixed precision with several ranks as it is planned (what is computed in 16 bits is in test_equal.py)."""

from pathlib import Path
from shutil import which

import pytest
import torch
from conftest import compiled, refusals
from test_equal import ZERO, needs_deepspeed

from factory.ranks.zero import cpu_adamw


@pytest.mark.parametrize(
    ("method", "precision", "param", "reduce"),
    [
        ("lora", "bf16", "bfloat16", "float32"),
        ("full", "bf16", "bfloat16", "float32"),
        ("qlora", "bf16", None, "float32"),  # a cast would destroy what is packed
        ("full", "pure_bf16", None, "float32"),
        ("full", "fp32", None, None),
    ],
)
def test_fsdp_gathers_in_16_bits_and_reduces_in_32(method: str, precision: str, param: str, reduce: str) -> None:
    shape = ("hardware=cpu", "hardware.num_processes=2", "hardware.strategy=fsdp")
    plan = compiled(*shape, f"method={method}", f"precision={precision}", training=False)
    given = plan.steps.train.ranks.configuration
    assert (given["param_dtype"], given["reduce_dtype"]) == (param, reduce)


@pytest.mark.parametrize("strategy", ["fsdp", *ZERO])
def test_float16_is_refused_where_its_scale_is_not_shared(strategy: str) -> None:
    shape = ("hardware=h100_80gb", "hardware.num_processes=2", f"hardware.strategy={strategy}")
    assert "strategy-limits" in [each.rule for each in refusals(*shape, "precision=fp16", training=False)]


@pytest.mark.parametrize(("card", "overlaps"), [("h100_80gb", True), ("cpu", False)])
def test_communication_overlaps_on_a_gpu(card: str, overlaps: bool) -> None:
    shape = (f"hardware={card}", "hardware.num_processes=2", "hardware.strategy=zero2")
    given = compiled(*shape, training=False).steps.train.ranks.configuration
    assert given["zero_optimization"]["overlap_comm"] is overlaps


# --- the optimizer of what is offloaded


@needs_deepspeed
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_offloaded_states_are_pinned(strategy: str) -> None:
    shape = ("hardware=h100_80gb", "hardware.num_processes=2", f"hardware.strategy={strategy}")
    given = compiled(*shape, "hardware.offload=true", training=False).steps.train.ranks.configuration
    moved = {"zero2": ("offload_optimizer",), "zero3": ("offload_optimizer", "offload_param")}[strategy]
    assert all(given["zero_optimization"][name] == {"device": "cpu", "pin_memory": True} for name in moved)


def adamw() -> torch.optim.AdamW:
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 40).view(8, 5))]
    return torch.optim.AdamW([{"params": parameters, "weight_decay": 0.1, "lr_ratio": 1.0}], lr=1e-2)


@needs_deepspeed
def test_without_a_compiler_torchs_adamw_steps_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(installed_ops, "cpu_adam", False)
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    assert cpu_adamw(adamw()) is None


@needs_deepspeed
@pytest.mark.slow  # it is compiled
@pytest.mark.skipif(which("c++") is None or which("ninja") is None, reason="there is no compiler")
def test_deepspeeds_adamw_steps_as_torchs() -> None:
    plain = adamw()
    like = adamw()
    faster = cpu_adamw(like)
    assert faster is not None
    for step in range(4):
        for optimizer in (plain, faster):
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.full((8, 5), 0.5 - step)
            optimizer.step()
    ours, theirs = (each.param_groups[0]["params"][0] for each in (faster, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
