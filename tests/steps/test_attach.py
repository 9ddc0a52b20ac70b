"""Weights that are not those of their config.json, where nobody could look at them before: as of a model on the hub."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from conftest import compiled
from safetensors.torch import load_file, save_file

from factory.config.refusal import UserError
from factory.execute.context import Run
from factory.run.folder import RunFolder
from factory.steps import attach

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


@pytest.mark.parametrize(
    ("strategy", "more", "where"),
    [
        ("fsdp", "precision=pure_bf16", "shares"),
        ("fsdp", "method.dora=true", "host"),
        ("fsdp", "method.quantization.bits=4", "card"),
        ("fsdp", "method.initialization=pissa", "card"),
        ("zero3", "precision=pure_bf16", "shares"),
        ("zero3", "method.dora=true", "card"),
        ("ddp", "precision=pure_bf16", "card"),
    ],
)
def test_what_is_split_is_read_in_shares_or_into_the_hosts_memory(
    strategy: str, more: str, where: str, tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would hold it whole: it does where it is quantized there, or an adapter's start taken out of it."""
    ranks = ("hardware=h100_80gb", "hardware.num_processes=2", f"hardware.strategy={strategy}")
    plan = compiled(f"model.path={tiny_model}", "method=lora", *ranks, more, training=False)
    given: dict[str, Any] = {}

    def read(*_: Any, **named: Any) -> Any:
        given.update(named)
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "card", lambda device: f"{device}:1")
    monkeypatch.setattr(attach, "model_class", lambda _config: SimpleNamespace(from_pretrained=read))
    with pytest.raises(KeyboardInterrupt):
        attach.read_weights(Run(plan, RunFolder(here), None), None, None)
    assert given["device_map"] == ({"": "cuda:1"} if where == "card" else None)
    split = getattr(given.get("distributed_config"), "fsdp_size", None)
    assert split == (2 if where == "shares" else None)
    assert ("reading" in plan.estimate.memory.instants) == (where != "host" and strategy != "ddp")
