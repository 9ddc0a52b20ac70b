"""A vision model's tensors are told apart, and the chosen parts are what trains."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from factory.architecture import Architecture
from factory.methods.badam import spec as badam
from factory.methods.freeze import spec as freeze
from factory.methods.full import spec as full
from factory.methods.parts import part_of
from factory.steps.walk import walk

TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}
SIGHT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
MODELS: dict[str, tuple[dict[str, Any], str, str]] = {  # the config, the vision tower's name and the projector's
    "llava": (
        {"text_config": TEXT, "vision_config": {"model_type": "clip_vision_model", "patch_size": 14, **SIGHT}},
        "vision_tower",
        "multi_modal_projector",
    ),
    "idefics3": ({"text_config": TEXT, "vision_config": {"patch_size": 14, **SIGHT}}, "vision_model", "connector"),
}


@pytest.fixture(params=MODELS)
def seen(request: pytest.FixtureRequest) -> tuple[Architecture, str, str]:
    config, tower, projector = MODELS[request.param]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(request.param, **config))
    return walk(model), tower, projector


def test_every_tensor_is_of_one_part(seen: tuple[Architecture, str, str]) -> None:
    arch, tower, projector = seen
    found = {name: part_of(name, arch) for name, _ in arch.tensors()}
    for name, part in found.items():
        wanted = "vision" if f".{tower}." in name else "projector" if f".{projector}." in name else "language"
        assert part == wanted, name
    assert set(found.values()) == {"language", "vision", "projector"}


@pytest.mark.parametrize("parts", [("language",), ("projector",), ("vision", "projector"), ("language", "projector")])
def test_full_trains_the_chosen_parts(parts: tuple[Any, ...], seen: tuple[Architecture, str, str]) -> None:
    arch = seen[0]
    trained = full.trainable(SimpleNamespace(parts=parts), arch)  # type: ignore[arg-type]
    assert set(trained) == {name for name, _ in arch.tensors() if part_of(name, arch) in parts}


@pytest.mark.parametrize("parts", [("language",), ("projector",), ("vision", "projector"), ("language", "projector")])
def test_other_parts_are_trained_whole(parts: tuple[Any, ...], seen: tuple[Architecture, str, str]) -> None:
    arch = seen[0]
    others = {name for name, _ in arch.tensors() if part_of(name, arch) in set(parts) - {"language"}}
    layer = set(arch.layer_tensors(1)) if "language" in parts else set()
    frozen = SimpleNamespace(parts=parts, layers=(1,), modules="all", extra_modules=())
    assert set(freeze.trainable(frozen, arch)) == others | layer  # type: ignore[arg-type]
    turns: Any = SimpleNamespace(parts=parts, embedding=False, head=False)
    layers = {name for index in range(2) for name in arch.layer_tensors(index)} if "language" in parts else set()
    assert set(badam.trainable(turns, arch)) == others | layers
    assert sum(len(block) for block in badam.blocks(turns, arch)) == len(others | layers)
