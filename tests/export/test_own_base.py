"""Exports of adapters that have a base to themselves: their start left the weights before these were quantized."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import SHORT, exported, files, losses, planned
from safetensors.torch import load_file

from factory import own_base
from factory.execute.report import write_report
from factory.refusal import UserError

Execute = Callable[..., Any]
KINDS: dict[str, tuple[str, ...]] = {
    "loftq": ("method=loftq",),
    "loftq of one turn": ("method=loftq", "method.iterations=1"),
    "pissa": ("method=pissa", "method.quantization.bits=4"),
    "fast pissa, fp4": (
        "method=pissa",
        "method.iterations=4",
        "method.quantization.bits=4",
        "method.quantization.type=fp4",
        "method.quantization.double_quantization=false",
    ),
    "rslora's scale": ("method=loftq", "method.rslora=true"),
}
EXACT = 1e-4  # nats of a token, in float32
PUBLISHED = "method.quantization.bits=null"


def _trained(execute: Execute, kind: str, *words: str) -> Any:
    done = execute(*KINDS[kind], "method.rank=4", *SHORT, *words)
    write_report(done.run, "finished", done.result, None)
    return done


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Of each adapted layer, with the adapter in it, as (out, in) in float32."""
    from peft.utils.integrations import dequantize_module_weight

    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            held = dequantize_module_weight(module.get_base_layer()).detach().float()
            weight = held + module.get_delta_weight("default").detach().float()
            found[f"{name.removeprefix('base_model.model.')}.weight"] = weight
    assert found
    return found


def _losses(run: Any, model: Any) -> torch.Tensor:
    return losses(model, run.dataset.first.ids[:48])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_was_trained(kind: str, execute: Execute) -> None:
    from transformers import AutoModelForCausalLM

    done = _trained(execute, kind)
    told = exported("run=run", "export.dir=out", "export.dtype=float32")
    assert {"merge", "as_trained", "written"} <= told["checks"].keys()
    assert all(check["passed"] for check in told["checks"].values()), told["checks"]
    read = AutoModelForCausalLM.from_pretrained("out")
    assert (_losses(done, read) - _losses(done, done.model)).abs().max() < EXACT
    written = load_file("out/model.safetensors")
    for name, weight in _weights(done.model).items():
        torch.testing.assert_close(written[name], weight, rtol=0, atol=1e-6)
    assert "## The base" not in Path("out/README.md").read_text()
