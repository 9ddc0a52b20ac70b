"""The LLaMA-Factory paper's Table 2, cell by cell: what goes together trains together, and what does not is refused."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from conftest import refusals

METHODS = {
    "freeze": ("method.num_layers=1",),
    "galore": ("method.rank=8",),
    "lora": ("method.rank=4",),
    "dora": ("method.rank=4",),
    "lora_plus": ("method.rank=4",),
    "pissa": ("method.rank=4",),
}
TECHNIQUES = {
    "mixed precision": ("precision=bf16",),
    "checkpointing": ("compute.activation_checkpointing=true",),
    "s2 attention": ("compute.attention=s2",),
    "quantization": ("method.quantization.bits=4",),
}
ON_A_GPU = {
    "mixed precision": ("precision=fp16",),
    "checkpointing": ("compute.activation_checkpointing=true",),
    "flash attention": ("compute.attention=flash_attention_2", "stage.batch_size=1", "evaluate.batch_size=1"),
    "s2 attention": ("compute.attention=s2",),
    "quantization": ("method.quantization.bits=4",),
    "unsloth": ("compute.kernels=unsloth",),  # what trains with it: tests/gpu/test_kernels.py, in processes of its own
}
PACKAGE = {"flash attention": "flash_attn"}
# the paper's crosses: the rule that refuses them
CROSSES = {
    ("freeze", "quantization"): "quantized-weights",
    ("galore", "quantization"): "quantized-weights",
    ("freeze", "unsloth"): "kernels",
    ("galore", "unsloth"): "kernels",
}
SHORT = ("stage.max_steps=3", "stage.warmup_ratio=0", "stage.logging_steps=1", "data.max_samples=40")


def ticks(techniques: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [
        (technique, method)
        for technique in techniques
        for method in METHODS
        if technique != "unsloth" and (method, technique) not in CROSSES
    ]


def is_on(technique: str, done: Any) -> bool:
    """Whether the model that trained was so."""
    model, plan = done.model, done.run.plan.steps
    trained = {value.dtype for value in model.parameters() if value.requires_grad}
    kinds = [type(module).__name__ for module in model.modules()]
    return {
        "mixed precision": trained == {torch.float32} and plan.train.autocast in ("bfloat16", "float16"),
        "checkpointing": any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
        "flash attention": model.config._attn_implementation == "flash_attention_2",
        "s2 attention": "s2" in model.config._attn_implementation,
        "quantization": sum(kind == "Linear4bit" for kind in kinds) >= 2 * 7,
    }[technique]


def check(technique: str, done: Any) -> None:
    assert [line["step"] for line in done.metrics] == [1, 2, 3]
    assert all(verdict["passed"] for verdict in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive"} <= done.run.checks.keys()
    assert is_on(technique, done), technique


@pytest.mark.parametrize(("technique", "method"), ticks(TECHNIQUES))
def test_a_tick_trains(technique: str, method: str, execute: Callable[..., Any]) -> None:
    check(technique, execute(f"method={method}", *METHODS[method], *TECHNIQUES[technique], *SHORT))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("technique", "method"), ticks(ON_A_GPU))
def test_a_tick_trains_on_a_gpu(technique: str, method: str, execute: Callable[..., Any]) -> None:
    package = PACKAGE.get(technique, "torch")
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    asked = ("hardware=single_gpu", *ON_A_GPU[technique])
    check(technique, execute(f"method={method}", *METHODS[method], *asked, *SHORT))


@pytest.mark.parametrize(("method", "technique"), CROSSES)
def test_a_cross_is_refused(method: str, technique: str, tiny_model: Any, here: Any) -> None:
    asked = (f"method={method}", *METHODS[method], *ON_A_GPU[technique], f"model.path={tiny_model}", "hardware=cpu")
    assert CROSSES[method, technique] in [found.rule for found in refusals(*asked)]
