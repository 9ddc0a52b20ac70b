"""A tiny random model of every architecture goes the whole way: plan, LoRA, a step, save, reload, the same loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from families import KINDS, built_of, roomy

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
    batch = batches.collate([done.dataset.train[0], done.dataset.train[1]], done.dataset.pad, "cpu")
    base = model_class(model.config).from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        trained = causal_lm(done.model.eval(), batch)
        assert trained != causal_lm(base.eval(), batch)
        reloaded = PeftModel.from_pretrained(base, str(done.run.folder.model))
        assert causal_lm(reloaded.eval(), batch).item() == pytest.approx(trained.item(), rel=1e-6)
