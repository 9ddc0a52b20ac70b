"""On a GPU: mixed precision trains, and each method's tensors are where and what the plan says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
METHODS = {"full": (), "lora": ("method.rank=8",), "qlora": ("method.rank=8",)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trains_on_the_gpu(method: str, precision: str, execute: Callable[..., Any]) -> None:
    done = execute(
        f"method={method}",
        *METHODS[method],
        "hardware=single_gpu",
        f"precision={precision}",
        "stage.max_steps=20",
        "stage.learning_rate=1e-2",
        "stage.warmup_ratio=0",
        "stage.logging_steps=1",
    )
    assert {value.device.type for value in done.model.parameters()} == {"cuda"}
    assert {value.dtype for value in done.model.parameters() if value.requires_grad} == {torch.float32}
    assert sum(done.losses[-3:]) < sum(done.losses[:3])
    assert done.result["evaluate"]["perplexity"] < done.result["evaluate"]["perplexity_before"]
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.run.memory_by_step["train"] > 0
