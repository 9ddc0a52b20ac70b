"""Every method trains exactly what the plan says, and leaves the rest as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHORT = ("stage.max_steps=3", "stage.warmup_ratio=0", "stage.batch_size=2", "stage.logging_steps=1", "precision=fp32")
METHODS = {
    "full": (),
    "freeze": ("method.num_layers=1",),
    "lora": ("method.rank=4",),
    "qlora": ("method.rank=4",),
    "galore": ("method.rank=8", "method.update_interval=2"),
}
LINEARS = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64  # of one layer: q and o, k and v, gate, up and down
LAYER = LINEARS + 2 * 32
FULL = 2 * LAYER + 2 * 512 * 32 + 32  # an untied head
LORA = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))


@pytest.mark.parametrize("stage", ["pt", "sft"])
@pytest.mark.parametrize(
    ("method", "count"), [("full", FULL), ("freeze", LAYER), ("lora", LORA), ("qlora", LORA), ("galore", FULL)]
)
def test_trains_exactly_what_is_planned(
    method: str, count: int, stage: str, execute: Callable[..., Any], tiny_model: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    done = execute(f"method={method}", f"stage={stage}", *METHODS[method], *SHORT, "stage.learning_rate=1e-2")
    assert done.run.plan.estimate.parameters.trainable == count
    assert sum(value.numel() for value in done.model.parameters() if value.requires_grad) == count
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive", "rows_accounted"} <= done.run.checks.keys()

    for name, value in done.model.named_parameters():  # 4-bit weights and adapters too
        same = value.detach().equal(done.start[name])
        assert same != value.requires_grad, f"{name}: trained {value.requires_grad}, unchanged {same}"
        assert not value.requires_grad or value.dtype == torch.float32

    before = load_file(tiny_model / "model.safetensors")
    for name, value in done.start.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in before and value.shape == before[plain].shape:  # not an adapter, not 4-bit
            assert value.equal(before[plain]), f"{name} is not what was loaded"
