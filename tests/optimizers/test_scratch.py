"""What an optimizer's step makes and frees, as the estimate has it and as torch counts what it allocates."""

from types import SimpleNamespace
from typing import Any

import pytest
from allocated import most_allocated

from factory.optimizers.spec import NEEDS_GPU, STATES, scratch

SIDE = 256


@pytest.mark.parametrize("number", [4, 2])
@pytest.mark.parametrize("name", sorted(STATES.keys() - NEEDS_GPU))
def test_scratch_is_what_a_step_allocates_on_a_cpu(name: str, number: int) -> None:
    import torch

    from factory.optimizers.run import build

    dtype = torch.float32 if number == 4 else torch.bfloat16
    weight = torch.nn.Parameter(torch.randn(SIDE, SIDE).to(dtype))
    plan: Any = SimpleNamespace(optimizer=name, weight_decay=0.1, learning_rate=1e-3)
    arch: Any = SimpleNamespace(layers_at="layers")
    optimizer = build({"layers.0.weight": weight}, plan, arch)
    for _ in range(2):  # the state is made in the first
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert most_allocated(optimizer.step) == pytest.approx(
        scratch(name, weight.numel(), number, "cpu"), rel=0.02, abs=2000
    )
