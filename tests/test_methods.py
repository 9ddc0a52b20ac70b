"""Every option of `method` trains exactly what the plan says, and leaves the rest as it was."""

from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pytest

from factory.config import groups
from factory.data.dataset import IGNORED

SHORT = ("stage.max_steps=3", "stage.warmup_ratio=0", "stage.batch_size=2", "stage.logging_steps=1", "precision=fp32")
# what an option needs beside its defaults to fit two layers that are 32 wide, and to train all it may within 3 steps
FITTING: dict[str, tuple[str, ...]] = {
    "adalora": ("method.initial_rank=4", "method.rank=3", "method.update_interval=1"),
    "apollo": ("method.rank=8", "method.update_interval=2"),
    "apollo_mini": ("method.update_interval=2",),
    "badam": ("method.switch_interval=1",),
    "badam_ratio": ("method.ratio=1",),
    "dora": ("method.rank=4",),
    "freeze": ("method.num_layers=1",),
    "full": (),
    "galore": ("method.rank=8", "method.update_interval=2"),
    "ia3": (),
    "llama_pro": (),
    "loftq": ("method.rank=4",),
    "loha": ("method.rank=4",),
    "lokr": ("method.rank=2",),
    "lora": ("method.rank=4",),
    "lora_plus": ("method.rank=4",),
    "oft": ("method.block_size=8",),
    "olora": ("method.rank=4",),
    "pissa": ("method.rank=4",),
    "qlora": ("method.rank=4",),
    "rslora": ("method.rank=4",),
    "vera": ("method.rank=8",),
}
SHAPES = [(32, 32)] * 2 + [(16, 32)] * 2 + [(64, 32)] * 2 + [(32, 64)]  # q and o, k and v, gate and up, down: (out, in)
LAYER = sum(outputs * inputs for outputs, inputs in SHAPES) + 2 * 32
FULL = 2 * LAYER + 2 * 512 * 32 + 32  # an untied head
LORA = 2 * sum(4 * (outputs + inputs) for outputs, inputs in SHAPES)
COUNTS = {
    **dict.fromkeys(("apollo", "apollo_mini", "full", "galore"), FULL),
    **dict.fromkeys(("badam", "badam_ratio", "llama_pro"), 2 * LAYER),
    **dict.fromkeys(("loftq", "lora", "lora_plus", "olora", "pissa", "qlora", "rslora"), LORA),
    "adalora": LORA + 2 * 7 * 4,
    "dora": LORA + 2 * sum(outputs for outputs, _ in SHAPES),
    "freeze": LAYER,
    "ia3": 2 * (16 + 16 + 64),
    "loha": 2 * LORA,
    # w1, w2_a and w2_b of q and o; k and v; gate, up and down
    "lokr": 2 * (2 * (4 * 4 + 8 * 2 + 2 * 8) + 2 * (4 * 4 + 4 * 2 + 2 * 8) + 3 * (8 * 4 + 8 * 2 + 2 * 8)),
    "oft": 2 * sum(inputs // 8 * 28 for _, inputs in SHAPES),
    "vera": 2 * sum(outputs + 8 for outputs, _ in SHAPES),
}
QUANTIZED = ("loftq", "qlora")
FROM_WEIGHTS = ("loftq", "olora", "pissa")  # A and B take a part out of the base
CASES = [("sft", name) for name in FITTING] + [("pt", name) for name in ("badam", "full", "llama_pro", "lora", "qlora")]


def test_every_option_is_tried() -> None:
    assert sorted(FITTING) == sorted(COUNTS) == [name for name in groups.options("method") if name != "none"]


@pytest.mark.parametrize(("stage", "method"), CASES)
def test_trains_exactly_what_is_planned(stage: str, method: str, execute: Callable[..., Any], tiny_model: Path) -> None:
    import torch

    done = execute(f"method={method}", f"stage={stage}", *FITTING[method], *SHORT, "stage.learning_rate=1e-2")
    count = COUNTS[method]
    assert done.run.plan.estimate.parameters.trainable == count
    assert sum(value.numel() for value in done.model.parameters() if value.requires_grad) == count
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive", "tokens_accounted"} <= done.run.checks.keys()

    for name, value in done.model.named_parameters():  # 4-bit weights and adapters too
        same = value.detach().equal(done.start[name])
        assert same != value.requires_grad, f"{name}: trained {value.requires_grad}, unchanged {same}"
        assert not value.requires_grad or value.dtype == torch.float32

    assert done.result["evaluate"]["perplexity"] < done.result["evaluate"]["perplexity_before"]
    starts_as_loaded(method, done, tiny_model)


def starts_as_loaded(method: str, done: Any, folder: Path) -> None:
    """What stands at the start is what was loaded: by name, by A, B and base together, and in what it computes."""
    from safetensors.torch import load_file

    wanted = load_file(folder / "model.safetensors")
    if method in (*FROM_WEIGHTS, *QUANTIZED):
        linears = {name: value for name, value in wanted.items() if "_proj" in name}
        for name, value in linears.items():
            error = (weight_at_start(done, name.removesuffix(".weight")) - value).norm() / value.norm()
            assert error < (0.1 if method in QUANTIZED else 1e-6), f"{name}: {error}"
        wanted = {name: value for name, value in wanted.items() if name not in linears}
    if method != "llama_pro":  # its layers have moved to other places
        found = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): value
            for name, value in done.start.items()
        }
        assert all(found[name].equal(value) for name, value in wanted.items())
    if method not in QUANTIZED:
        assert done.result["evaluate"]["perplexity_before"] == pytest.approx(perplexity(done, folder), rel=1e-5)


def weight_at_start(done: Any, name: str) -> Any:
    """base + scale · BA of a linear layer, (out, in), before the first step."""
    from peft.utils.integrations import dequantize_module_weight

    at = f"base_model.model.{name}"
    layer = done.model.get_submodule(at)
    a, b = (done.start[f"{at}.lora_{side}.default.weight"] for side in "AB")
    return dequantize_module_weight(layer.base_layer).detach() + layer.scaling["default"] * b @ a


def perplexity(done: Any, folder: Path) -> float:
    """Of the held-out rows, with the saved model as transformers reads it; long ones in windows that share a token."""
    import torch
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), done.dataset.validation
    total, count, length = 0.0, 0, done.run.plan.steps.pack.max_length
    with torch.no_grad():
        for row in rows:
            for start in range(0, len(row.ids) - 1, length - 1):
                ids, labels = (torch.tensor([each[start : start + length]]) for each in (row.ids, row.labels))
                trained = int((labels[:, 1:] != IGNORED).sum())
                total += model(input_ids=ids, labels=labels).loss.item() * trained if trained else 0.0
                count += trained
    assert count == sum(row.trained for row in rows)
    return exp(total / count)
