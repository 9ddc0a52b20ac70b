"""A quantized base: the decoder's linear layers and no others, and as many bytes as the plan says."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sights
import tiny
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor

from factory.architecture import architecture
from factory.losses import causal_lm

SHORT = ("method.rank=4", "stage.max_steps=2", "data.max_samples=8", "data.max_length=64", "stage=pt", "precision=fp32")
BITS = {"nf4": ("method=qlora",), "int8": ("method=lora", "method.quantization.bits=8")}
SIZES = {"vocab_size": 512, "max_position_embeddings": 256}
EXPERTS = {
    "model_type": "qwen2_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


def saved(kind: str, folder: Path) -> Path:
    """A tiny model with the tests' tokenizer: one that sees, or one of experts, whose shared one has a gate."""
    if kind == "qwen2_moe":
        return tiny.save(folder, **EXPERTS)
    sights.built(kind, **SIZES).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def held(model: Any) -> int:
    """Bytes of all parameters, and of the constants that quantized ones are read with."""
    total = sum(value.nbytes for value in model.parameters())
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            state = weight.quant_state
            constants = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            total += sum(value.nbytes for value in constants)
        elif isinstance(module, Linear8bitLt):  # they lie with the weight until it is used first
            assert module.state.SCB is not None
            total += module.state.SCB.nbytes
    return total


def quantized(model: Any) -> set[str]:
    """The layers whose weights are not held as they were read, adapters left aside."""
    layers = {name.removesuffix(".base_layer"): module for name, module in model.get_base_model().named_modules()}
    linears = {name: module for name, module in layers.items() if isinstance(module, torch.nn.Linear)}
    return {
        name for name, it in linears.items() if type(it) is not torch.nn.Linear or type(it.weight.data) is not Tensor
    }


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["llava", "idefics3", "paligemma", "qwen2_vl", "qwen2_audio", "qwen2_moe"])
def test_the_decoders_linear_layers_alone(kind: str, bits: str, tmp_path: Path, execute: Callable[..., Any]) -> None:
    done = execute(f"model.path={saved(kind, tmp_path / 'base')}", *BITS[bits], *SHORT)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    linears = set(architecture(done.run.plan.steps.load.config).linears())
    assert not any("vision" in name or "visual" in name or "gate" in name.split(".") for name in linears)
    assert quantized(done.model) == linears
    assert held(done.model) == done.run.plan.estimate.memory.weights


@pytest.mark.parametrize("library", ["torchao", "quanto"])
def test_by_other_libraries_too(library: str, tmp_path: Path, execute: Callable[..., Any]) -> None:
    module = {"quanto": "optimum.quanto"}.get(library, library)
    if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    way = ("method=lora", "method.quantization.bits=8", f"method.quantization.method={library}")
    done = execute(f"model.path={saved('llava', tmp_path / 'base')}", *way, *SHORT)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert quantized(done.model) == set(architecture(done.run.plan.steps.load.config).linears())


@pytest.mark.parametrize("bits", BITS)
def test_it_still_sees(bits: str, tmp_path: Path, execute: Callable[..., Any]) -> None:
    """The answer to images over the quantized decoder is near the whole model's; only the decoder's adapters learn."""
    done = execute(f"model.path={saved('llava', tmp_path / 'base')}", *BITS[bits], *SHORT)
    model, batch = done.model, sights.batch("llava")
    with torch.no_grad(), model.disable_adapter():
        near = causal_lm(model.eval(), batch)
    whole = causal_lm(sights.built("llava", **SIZES), batch)
    assert near != whole
    torch.testing.assert_close(near, whole, rtol=0.03, atol=0)
    causal_lm(model.train(), batch).backward()
    alive = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert alive == {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(".language_model." in name and ".lora_" in name for name in alive)
