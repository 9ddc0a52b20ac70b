"""Stepping within the backward pass: the same weights, and no two gradients at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from factory.optimizers.several import Layerwise

PLAIN = (
    "stage.max_steps=4",
    "stage.warmup_ratio=0",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-2",
    "stage.weight_decay=0.1",
    "stage.max_grad_norm=null",
    "stage.save_steps=null",
    "precision=fp32",
    "evaluate.perplexity=false",
)
METHODS = {
    "full": ("method=full",),
    "full muon": ("method=full", "stage.optimizer=muon"),
    "full recomputed": ("method=full", "compute.activation_checkpointing=true"),
    "galore": ("method=galore", "method.rank=8", "method.update_interval=2"),
    "apollo": ("method=apollo_mini",),
}


@pytest.mark.parametrize("method", METHODS)
def test_layerwise_is_the_same_training(method: str, execute: Callable[..., Any]) -> None:
    if method == "apollo":  # its projections are drawn in another order
        done = execute(*PLAIN, *METHODS[method], "method.layerwise=true")
        assert done.losses[-1] < done.losses[0]
        assert done.run.checks["gradients_alive"]["passed"]
        return
    together = execute(*PLAIN, *METHODS[method], folder="together")
    apart = execute(*PLAIN, *METHODS[method], "method.layerwise=true", folder="apart")
    assert apart.losses == together.losses
    for mine, theirs in zip(apart.metrics, together.metrics, strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert mine["learning_rate"] == theirs["learning_rate"]
    assert apart.run.checks["gradients_alive"] == together.run.checks["gradients_alive"]
    wanted = dict(together.model.named_parameters())
    for name, value in apart.model.named_parameters():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0, msg=name)


def test_a_gradient_is_gone_before_the_next_comes() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    named = dict(model.named_parameters())
    made = Layerwise({name: torch.optim.SGD([value], lr=0.1) for name, value in named.items()}, None)
    alive: list[int] = []
    for value in named.values():  # called after the optimizer's own hook
        value.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(v.grad is not None for v in named.values()))
        )
    start = {name: value.detach().clone() for name, value in named.items()}
    model(torch.randn(2, 4)).sum().backward()
    assert alive == [0] * 6 and made.norms.keys() == named.keys()
    assert not any(torch.equal(value, start[name]) for name, value in named.items())


def test_each_tensor_is_clipped_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    limit = 0.5
    made = Layerwise({name: torch.optim.SGD([value], lr=1.0) for name, value in model.named_parameters()}, limit)
    (10 * model(torch.ones(1, 4))).sum().backward()
    gradients = {"weight": torch.full((4, 4), 10.0), "bias": torch.full((4,), 10.0)}
    for name, value in model.named_parameters():
        assert made.norms[name].item() == pytest.approx(gradients[name].norm().item())
        assert (start[name] - value.detach()).norm().item() == pytest.approx(limit, rel=1e-4)
    made.zero_grad()
    assert made.norms == {}


def test_a_dead_tensor_is_found(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Layerwise._take

    def losing(self: Any, name: str, tensor: Any) -> None:
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor.grad.zero_()
        original(self, name, tensor)

    monkeypatch.setattr(Layerwise, "_take", losing)
    done = execute(*PLAIN, "method=full", "method.layerwise=true")
    check = done.run.checks["gradients_alive"]
    assert not check["passed"]
    assert check["detail"].endswith("not model.layers.1.mlp.up_proj.weight")


def test_the_key_reaches_the_optimizer(execute: Callable[..., Any]) -> None:
    """Plain gradient descent at a rate of 1 moves each tensor by its clipped gradient."""
    options = (*PLAIN, "method=full", "stage.optimizer=sgd", "stage.weight_decay=0", "stage.max_steps=1")
    options = (*options, "method.layerwise=true", "stage.learning_rate=1")
    free, clipped = (
        execute(*options, f"method.max_grad_norm_per_tensor={limit}", folder=f"{limit}") for limit in ("null", 1e-3)
    )
    for name, value in free.model.named_parameters():
        moved = (value.detach() - free.start[name]).norm().item()
        now = (clipped.model.get_parameter(name).detach() - clipped.start[name]).norm().item()
        assert now == pytest.approx(min(moved, 1e-3), rel=0.02), name
    assert clipped.metrics[0]["grad_norm"] == free.metrics[0]["grad_norm"]
