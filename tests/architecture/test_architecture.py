"""A config.json that cannot be counted is refused; what is saved on disk is what was counted."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from families import SMALL

from factory.architecture import architecture
from factory.config.refusal import UserError


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


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_number_is_named(key: str) -> None:
    config = {name: value for name, value in SMALL.items() if name != key} | {"model_type": "llama"}
    with pytest.raises(UserError, match=key):
        architecture(config)
