"""Weights that are not those of their config.json, where nobody could look at them before: as of a model on the hub."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import compiled
from safetensors.torch import load_file, save_file

from factory.refusal import UserError

BASE = ("evaluate.samples=0", "hardware=cpu", "tracking=none", "stage.max_steps=1", "data.max_samples=12")


@pytest.mark.parametrize(
    ("changes", "rule", "wrong"),
    [
        ({"hidden_size": 48}, "weights-fit", "lm_head.weight is 512 x 48 in its file, its config.json says 512 x 32"),
        ({"num_hidden_layers": 3}, "weights-fit", "its files have 3 layers, its config.json says 2"),
        ({"num_hidden_layers": 1}, "weights-missing", "its files lack model.layers.1.input_layernorm.weight, "),
    ],
)
def test_weights_of_another_model(
    changes: dict[str, int], rule: str, wrong: str, here: Path, execute: Callable[..., Any]
) -> None:
    mine, other = tiny.save(here / "mine"), tiny.save(here / "other", **changes)
    plan = compiled(*BASE, f"model.path={mine}")
    shutil.copy(other / "model.safetensors", mine)
    with pytest.raises(UserError, match=re.escape(f"[{rule}] model.path={mine}: {wrong}")):
        execute(plan=plan)


def test_a_tensor_more_in_some_layer_is_no_other_depth(here: Path, execute: Callable[..., Any]) -> None:
    folder = tiny.save(here / "mine")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.sink": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    execute(*BASE, f"model.path={folder}")


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_tied_and_another_tensor_is_refused(tied: bool, here: Path, execute: Callable[..., Any]) -> None:
    """Whichever of the two were taken, it might be the wrong one; untied, as the refusal says, both are read."""
    folder = tiny.save(here / "mine", tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    if not tied:
        execute(*BASE, f"model.path={folder}")
        return
    with pytest.raises(UserError, match=r"\[weights-untied\] .* ties lm_head.weight to model.embed_tokens.weight"):
        execute(*BASE, f"model.path={folder}")
