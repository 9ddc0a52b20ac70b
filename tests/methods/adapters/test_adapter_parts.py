"""Adapters in the parts of a model that sees: just in those that are asked for."""

from pathlib import Path

import pytest
import tiny
from built import built

from factory.architecture import Architecture
from factory.config import registry
from factory.methods.lora.targets import PREFIX
from factory.methods.parts import part_of
from factory.steps.walk import walk

EYES = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 2,
    "projection_dim": 16,
}


@pytest.mark.parametrize(
    "parts",
    [("language",), ("vision",), ("projector",), ("language", "projector"), ("language", "vision", "projector")],
)
@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_only_in_the_parts_asked_for(method: str, parts: tuple[str, ...], tiny_model: Path) -> None:
    from transformers import AutoModelForImageTextToText, LlavaConfig

    config = LlavaConfig(vision_config=EYES, text_config=tiny.config())
    model = AutoModelForImageTextToText.from_config(config)
    arch: Architecture = walk(model)
    model.requires_grad_(False)
    like = built(tiny_model, f"method={method}", "method.rank=4")
    settings = like.settings.model_copy(update={"parts": parts})
    attached = like.method.attach(model, settings, like.plan.steps.attach, arch)
    found = {name: tuple(value.shape) for name, value in attached.named_parameters() if value.requires_grad}
    assert found == registry.spec("methods", like.plan.settings.method.name).trainable(settings, arch)
    assert {part_of(name.removeprefix(PREFIX), arch) for name in found} == set(parts)
