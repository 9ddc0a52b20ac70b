"""Adapters through the whole executor: every precision, and a resume that continues bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_every_adapter import ADAPTERS

SHORT = ("stage.warmup_ratio=0", "stage.logging_steps=1", "stage.batch_size=2", "evaluate.perplexity=false")


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
@pytest.mark.parametrize("method", [name for name in ADAPTERS if name not in ("lora", "rslora", "lora_plus")])
def test_sixteen_bits(method: str, precision: str, execute: Callable[..., Any]) -> None:
    done = execute(f"method={method}", *ADAPTERS[method], *SHORT, f"precision={precision}", "stage.max_steps=3")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    trained = {value.dtype for value in done.model.parameters() if value.requires_grad}
    assert trained == {torch.bfloat16 if precision == "pure_bf16" else torch.float32}


@pytest.mark.parametrize("method", ["pissa", "fast pissa", "loftq", "dora", "vera", "lora_plus"])
def test_a_resume_continues_bit_for_bit(method: str, execute: Callable[..., Any]) -> None:
    """The base that an adapter started from is made again, the same to the last bit."""
    name = method.removeprefix("fast ")
    fast = ("method.iterations=4",) if method == "fast pissa" else ()
    run = (f"method={name}", *ADAPTERS[name], *fast, *SHORT, "precision=fp32", "stage.max_steps=4")
    whole = execute(*run, "stage.save_steps=2", "stage.save_total_limit=3", folder="whole")
    (middle,) = [path for path in whole.run.folder.whole_checkpoints() if path.name.endswith("000002")]
    rest = execute(*run, "stage.save_steps=2", "stage.save_total_limit=3", folder="rest", resume_from=middle)
    assert rest.losses[-2:] == whole.losses[-2:]
    for key, value in whole.model.named_parameters():
        assert value.equal(rest.model.get_parameter(key)), key
