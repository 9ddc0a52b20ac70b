"""What a method adds to the loss is the same in one process and in several."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from factory.methods.adalora.run import penalty
from factory.ranks.shared import Shared
from factory.steps.engine import Engine


@pytest.mark.parametrize("precision", ["bfloat16", None])
def test_the_penalty_has_full_precision(precision: str | None) -> None:
    """Its products are of float32 tensors, which autocast would round to bfloat16."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    for name, shape in {"lora_A": (8, 64), "lora_B": (64, 8)}.items():
        part = torch.nn.Module()
        part.register_parameter("default", torch.nn.Parameter(torch.randn(shape)))
        model.add_module(name, part)
    layer = torch.nn.Module()
    layer.add_module("layer", model)
    steps = SimpleNamespace(train=SimpleNamespace(autocast=precision), load=SimpleNamespace(device="cpu"))
    gradients = {}
    for kind in (Engine, Shared):
        engine: Any = object.__new__(kind)
        engine.model, engine._settings = layer, SimpleNamespace(orthogonality=0.5)
        engine._method, engine._scaler = SimpleNamespace(penalty=penalty), torch.amp.GradScaler("cpu", enabled=False)
        engine._run, engine._world = SimpleNamespace(plan=SimpleNamespace(steps=steps)), SimpleNamespace(size=2)
        engine.root = lambda function: function()
        engine._terms = lambda batch: (torch.zeros((), requires_grad=True), {})
        layer.zero_grad()
        engine._pass({}, 1.0, counted=True, last=True)
        engine._penalize()
        gradients[kind] = [value.grad for value in layer.parameters()]
    for one, other in zip(gradients[Engine], gradients[Shared], strict=True):
        assert one.any() and torch.equal(one, other)
