"""A tiny random model of every architecture goes the whole way: plan, LoRA, a step, save, reload, the same loss."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from families import CASES, built_of

KINDS = {config["model_type"]: config for config in reversed(CASES)}  # the first case of each kind
SIZES = {"vocab_size": 512, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256}
SHORT = (
    "method=lora",
    "method.rank=2",
    "stage.learning_rate=1e-2",
    "model.context_length=256",
    "stage.max_steps=1",
    "data.max_samples=8",
    "evaluate.samples=0",
    "precision=fp32",
)


ALSO: dict[str, dict[str, Any]] = {
    kind: {"num_key_value_heads": 4} for kind in ("minicpm3", "deepseek_v2", "deepseek_v3")
}
ALSO["deepseek_v3"] |= {"n_group": 1, "topk_group": 1}
ALSO["dbrx"] = {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}


def roomy(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a vocabulary and a context for the tests' rows, and what its forward needs."""
    config = config | ALSO.get(config["model_type"], {})
    changed = {key: SIZES.get(key, value) for key, value in copy.deepcopy(config).items()}
    if "vision_config" in config and "vocab_size" not in config:
        changed["text_config"] |= {key: SIZES[key] for key in ("vocab_size", "max_position_embeddings")}
        if config["model_type"] in ("qwen2_vl", "qwen2_5_vl"):  # the halves of a head's width, by time, height, width
            changed["text_config"]["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_and_reloads(kind: str, tmp_path: Path, execute: Callable[..., Any]) -> None:
    import torch
    from peft import PeftModel

    from factory.data import batches
    from factory.losses import causal_lm
    from factory.steps.walk import model_class

    torch.manual_seed(0)
    model = built_of(roomy(KINDS[kind]), "cpu")
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    done = execute(f"model.path={folder}", *SHORT)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    batch = batches.collate(done.dataset.train[:2], done.dataset.pad, "cpu")
    base = model_class(model.config).from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        trained = causal_lm(done.model.eval(), batch)
        assert trained != causal_lm(base.eval(), batch)
        reloaded = PeftModel.from_pretrained(base, str(done.run.folder.model))
        assert causal_lm(reloaded.eval(), batch).item() == pytest.approx(trained.item(), rel=1e-6)
