"""A quantized base costs what the plan says, answers as the whole one does, and adapters train over it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import quantized_checkpoints
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from factory.config.settings import Quantization
from factory.plan.plan import Dtype
from factory.quantizers.spec import weight_bytes
from factory.steps import quantize

MODULES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum.quanto", "hqq": "hqq"}
WAYS = {
    "nf4": Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True),
    "nf4, whole constants": Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=False),
    "fp4": Quantization(method="bitsandbytes", bits=4, type="fp4", double_quantization=True),
    "int8": Quantization(method="bitsandbytes", bits=8, type="nf4", double_quantization=True),
    "torchao": Quantization(method="torchao", bits=8, type="nf4", double_quantization=True),
    "quanto": Quantization(method="quanto", bits=8, type="nf4", double_quantization=True),
    "hqq 4": Quantization(method="hqq", bits=4, type="nf4", double_quantization=True),
    "hqq 8": Quantization(method="hqq", bits=8, type="nf4", double_quantization=True),
}
NONE = Quantization(method="bitsandbytes", bits=None, type="nf4", double_quantization=True)
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def needs(module: str) -> None:
    parent = module.partition(".")[0]
    if find_spec(parent) is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose widths a group of 128 weights divides."""
    return tiny.save(tmp_path_factory.mktemp("small") / "llama", hidden_size=128, intermediate_size=256)


def linears(model: Any) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("_proj")]


def read(folder: Path, dtype: Dtype, plan: Quantization) -> Any:
    """As the attach step reads it."""
    quantization = quantize.held(plan, getattr(torch, dtype))
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        device_map={"": "cpu"},
        quantization_config=quantize.while_reading(quantization),
    )
    quantize.after_reading(model, quantization, linears(model))
    return model.requires_grad_(False)


def read_checkpoint(folder: Path, dtype: Dtype) -> tuple[Any, dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(folder),
        dtype=getattr(torch, dtype),
        device_map={"": "cpu"},
        quantization_config=quantize.of_checkpoint(config, "cpu"),
    )
    quantize.after_reading(model, None, ())
    return model.requires_grad_(False), config


def tokens() -> torch.Tensor:
    return torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))


def answers(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=tokens()).logits.float()


def held_bytes(layer: Any) -> int:
    """Every tensor that a layer holds, by storage, once."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if hasattr(value, "__tensor_flatten__") and not type(value).__module__.startswith(("torch.", "bitsandb")):
                for name in value.__tensor_flatten__()[0]:
                    visit(getattr(value, name))
                return
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            visit(vars(value))
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif type(value).__name__ in ("QuantState", "MatmulLtState"):
            visit(vars(value))

    visit({name: value for name, value in vars(layer).items() if name != "_modules"})
    return sum(found.values())


def trains(model: Any, method: dict[str, Any] | None = None) -> list[float]:
    """A few steps of LoRA after an evaluation. Every adapter has a gradient, and nothing else changes."""
    names = linears(model)
    before = {name: given(model.get_submodule(name), model.dtype) for name in names}
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM", **(method or {}))
    )
    answers(adapted)  # what loses gradients on some CPUs: an evaluation, and training after it
    adapted.train()
    learned = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    losses = []
    for step in range(6):
        loss = adapted(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        if step == 1:  # B is zero before, and A has no gradient
            assert all(value.grad is not None and value.grad.any() for value in learned)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        answers(adapted)
        adapted.train()
    inner = adapted.get_base_model()
    for name, value in before.items():
        layer = inner.get_submodule(f"{name}.base_layer")
        assert torch.equal(given(layer, model.dtype), value), f"{name} is not what it was"
    return losses


def given(layer: Any, dtype: Any) -> torch.Tensor:
    """What a linear layer gives for some random inputs."""
    inputs = torch.randn(16, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        return layer.eval()(inputs).float()


def off(model: Any, folder: Path) -> list[float]:
    """Each linear layer's error, of the standard deviation of what it should give."""
    right = load_file(folder / "model.safetensors")
    found = []
    for name in linears(model):
        weight = right[f"{name}.weight"]
        exact = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=model.dtype)
        exact.load_state_dict({"weight": weight})
        expected = given(exact, model.dtype)
        found.append(((given(model.get_submodule(name), model.dtype) - expected).std() / expected.std()).item())
    return found


OFF = {4: 0.15, 8: 0.02}  # how far 4 and 8 bits may be off


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_quantized_while_reading(way: str, dtype: Dtype, small: Path) -> None:
    plan = WAYS[way]
    needs(MODULES[plan.method])
    model = read(small, dtype, plan)
    for name in linears(model):
        layer = model.get_submodule(name)
        shape = (layer.out_features, layer.in_features)
        assert held_bytes(layer) == weight_bytes(plan, {}, shape, dtype), name
    assert plan.bits is not None
    errors = off(model, small)
    assert 0 < min(errors) <= max(errors) < OFF[plan.bits]
    losses = trains(model)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", quantized_checkpoints.NAMES)
def test_a_quantized_checkpoint(name: str, dtype: Dtype, small: Path, tmp_path: Path) -> None:
    needs(quantized_checkpoints.PACKAGE.get(name, "bitsandbytes"))
    model, config = read_checkpoint(quantized_checkpoints.write(name, small, tmp_path / "made"), dtype)
    for linear in linears(model):
        layer = model.get_submodule(linear)
        shape = (layer.out_features, layer.in_features)
        assert held_bytes(layer) == weight_bytes(NONE, config, shape, dtype), linear
    assert max(off(model, small)) < OFF[4 if name in ("bitsandbytes 4", "gptq", "awq", "fp8") else 8]
    losses = trains(model)
    assert losses[-1] < losses[0] - 0.1
