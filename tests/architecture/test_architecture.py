"""The closed form against what transformers builds on the meta device: every name, every shape."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from factory import compose
from factory.architecture import FAMILIES, architecture
from factory.refusal import UserError

NUMBERS = {
    option: yaml.safe_load((Path(compose.CONF) / "model" / f"{option}.yaml").read_text())["architecture"]
    for option in compose.options("model")
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
VARIANTS = {
    "llama": {"model_type": "llama"},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "attention_bias": {"model_type": "llama", "attention_bias": True},
    "mlp_bias": {"model_type": "llama", "mlp_bias": True},
    "head_dim": {"model_type": "llama", "head_dim": 16},
    "as many kv heads": {"model_type": "llama", "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral"},
    "mistral reads no biases": {"model_type": "mistral", "attention_bias": True, "mlp_bias": True},
    "mistral head_dim": {"model_type": "mistral", "head_dim": 16},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 reads no biases": {"model_type": "qwen2", "attention_bias": False, "mlp_bias": True},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 head_dim": {"model_type": "qwen3", "head_dim": 8},
    "qwen3 attention_bias": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True},
}
CASES = {**NUMBERS, **{name: SMALL | changes for name, changes in VARIANTS.items()}}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_model_that_transformers_builds(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = dict(CASES[name])
    config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    linears = {
        name.split(".", 3)[3]: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.0.")
    }
    for found in (architecture(CASES[name]), architecture(config.to_dict())):  # the numbers alone, and a whole config
        assert dict(found.tensors()) == built
        assert found.parameters() == model.num_parameters()
        assert found.linears == linears


def test_every_family_is_compared() -> None:
    assert {numbers["model_type"] for numbers in CASES.values()} == set(FAMILIES)


def test_the_saved_models_tensors_are_the_planned(tiny_model: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model / "model.safetensors", "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert saved == dict(architecture(tiny.config().to_dict()).tensors())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model_type": "qwen22"}, "unknown-architecture"),
        ({"model_type": None}, "unknown-architecture"),
        ({"model_type": ["llama"]}, "unknown-architecture"),
        ({"hidden_size": None}, "incomplete-config"),
        ({"hidden_size": "wide"}, "incomplete-config"),
        ({"num_attention_heads": 0}, "incomplete-config"),
        ({"vocab_size": float("inf")}, "incomplete-config"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError) as error:
        architecture(SMALL | {"model_type": "llama"} | changes)
    assert [refusal.rule for refusal in error.value.refusals] == [rule]


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_missing_number_is_named(key: str) -> None:
    config = {name: value for name, value in SMALL.items() if name != key} | {"model_type": "llama"}
    with pytest.raises(UserError, match=key):
        architecture(config)
