"""What a plan says is trained is what a text reaches: of every family, by every way to choose tensors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import compiled
from families import KINDS, built_of, roomy

from factory.architecture import architecture
from factory.config import registry
from factory.losses import causal_lm
from factory.methods.badam import spec as badam
from factory.methods.freeze import spec as freeze
from factory.methods.full import spec as full

TEXT = ("language",)
CHOICES: dict[str, tuple[Any, Any]] = {
    "full": (full, SimpleNamespace(parts=TEXT)),
    "badam": (badam, SimpleNamespace(parts=TEXT, embedding=True, head=True)),
    "freeze": (freeze, SimpleNamespace(parts=TEXT, layers=(0, 1), modules="all", extra_modules=())),
}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 90, (4, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def reached(model: Any) -> set[str]:
    """The parameters that a text's loss gives a gradient."""
    causal_lm(model.train(), batch()).backward()
    return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_gets_a_gradient(kind: str) -> None:
    torch.manual_seed(0)
    model = built_of(roomy(KINDS[kind]), "cpu")
    arch, alive = architecture(model.config.to_dict()), reached(model)
    assert set(full.trainable(CHOICES["full"][1], arch)) == alive
    for spec, settings in CHOICES.values():
        assert set(spec.trainable(settings, arch)) <= alive


@pytest.mark.parametrize("kind", KINDS)
def test_what_adapts_gets_a_gradient(kind: str, tiny_model: Path) -> None:
    """With a B that is not zero, as after a first step."""
    torch.manual_seed(0)
    model = built_of(roomy(KINDS[kind]), "cpu").requires_grad_(False)
    arch = architecture(model.config.to_dict())
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", "precision=fp32", "method=lora", "method.rank=2")
    settings: Any = plan.settings.method
    attached = registry.run("methods", "lora").attach(model, settings, plan.steps.attach, arch)
    for name, value in attached.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value)
    assert reached(attached) == set(registry.spec("methods", "lora").trainable(settings, arch))
