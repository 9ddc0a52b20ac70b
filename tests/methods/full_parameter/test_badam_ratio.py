"""BAdam's ratio mode: Adam, from nothing in each turn, on the chosen elements; each element has its turn."""

from collections.abc import Callable
from math import ceil, prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from low_rank import Adam

from factory.methods.badam_ratio.run import Shares, indices
from factory.methods.badam_ratio.spec import chosen

PLAIN = (
    "method=badam_ratio",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-2",
    "stage.save_steps=null",
    "precision=fp32",
    "evaluate.perplexity=false",
)


def settings(**changes: Any) -> Any:
    return SimpleNamespace(**{"switch_interval": 3, "ratio": 0.3, "mask": "adjacent", **changes})


@pytest.mark.parametrize("mask", ["adjacent", "scattered"])
@pytest.mark.parametrize("size", [99, 100, 360, 1001])
def test_each_element_has_its_turn(size: int, mask: str) -> None:
    found = [indices(settings(mask=mask), size, turn, 12345).tolist() for turn in range(10)]
    assert all(len(set(turn)) == len(turn) == chosen(settings(), size) for turn in found)
    assert {place for turn in found[: ceil(1 / 0.29)] for place in turn} == set(range(size))
    if size > 99:
        assert found[0] != found[1]
        steps = set(np.diff(found[0]).tolist())
        assert steps == {1} if mask == "adjacent" else 1 not in steps


@pytest.mark.parametrize("mask", ["adjacent", "scattered"])
def test_they_are_told_where_the_weights_are(mask: str) -> None:
    """In every step anew: from the CPU they would have to be sent."""
    assert indices(settings(mask=mask), 1000, 3, 12345, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("mask", ["adjacent", "scattered"])
@pytest.mark.parametrize("shape", [(10, 30), (300,), (7,)])
def test_steps_are_adam_on_the_chosen(shape: tuple[int, ...], mask: str, train_plan: Callable[..., Any]) -> None:
    plan, decay, size = train_plan(weight_decay=0.1), 0.1 if len(shape) == 2 else 0.0, prod(shape)
    torch.manual_seed(0)
    tensor = torch.nn.Parameter(torch.randn(shape))
    model = torch.nn.ParameterDict({"w": tensor})
    shares = Shares(model, settings(mask=mask), plan, SimpleNamespace(layers_at="layers"))  # type: ignore[arg-type]
    weight, adam = tensor.detach().double().numpy().flatten(), Adam()
    for step in range(9):
        if step % 3 == 0:
            adam = Adam()
        shares.begin(step // 3)
        places = indices(settings(mask=mask), size, step // 3, shares.seeds["w"]).numpy()
        factors = [torch.randn(shape), torch.randn(shape)]
        for factor in factors:  # two micro-steps
            (tensor * factor).sum().backward()
        assert tensor.grad is None
        shares.step()
        shares.zero_grad()
        gradient = sum(factors).double().numpy().flatten()[places]  # type: ignore[union-attr]
        weight[places] = weight[places] * (
            1 - plan.settings.stage.learning_rate * decay
        ) - plan.settings.stage.learning_rate * adam(gradient)
        np.testing.assert_allclose(tensor.detach().numpy().flatten(), weight, atol=1e-6)


def test_memory_and_gradients_are_of_the_chosen(execute: Callable[..., Any]) -> None:
    done = execute(*PLAIN, "method.switch_interval=2", "stage.max_steps=5", "stage.save_steps=5", "method.ratio=0.1")
    check = done.run.checks["gradients_alive"]
    assert check["passed"] and check["detail"].startswith("18 of 18")
    saved = torch.load(done.run.folder.checkpoint() / "optimizer.pt", weights_only=True)["optimizers"]
    states = [entry for inner in saved for entry in inner["state"].values()]
    held = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert held == done.run.plan.estimate.memory.optimizer
    for name, value in done.model.named_parameters():
        moved = (value.detach() != done.start[name]).sum().item()
        share = chosen(settings(ratio=0.1), value.numel()) if "layers" in name else 0
        assert moved <= 3 * share
        assert moved > 2.5 * share or moved == value.numel() or moved == share == 0, name


def test_the_norm_is_of_the_chosen_and_clips_them(execute: Callable[..., Any]) -> None:
    whole = execute(*PLAIN, "method.ratio=1", "stage.max_steps=1", folder="whole")
    part = execute(*PLAIN, "method.ratio=0.1", "stage.max_steps=1", folder="part")
    assert 0.05 < part.metrics[0]["grad_norm"] / whole.metrics[0]["grad_norm"] < 0.7
    assert part.losses == whole.losses
