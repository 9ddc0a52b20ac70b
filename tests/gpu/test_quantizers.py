"""On a GPU: every quantizer that is installed trains there, as the base that it reads and as a checkpoint."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import quantized_checkpoints
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from factory.config.settings import Quantization
from factory.steps import quantize

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
WAYS = {
    "nf4": ("bitsandbytes", Quantization(method="bitsandbytes", bits=4, type="nf4", double_quantization=True)),
    "fp4": ("bitsandbytes", Quantization(method="bitsandbytes", bits=4, type="fp4", double_quantization=False)),
    "int8": ("bitsandbytes", Quantization(method="bitsandbytes", bits=8, type="nf4", double_quantization=True)),
    "torchao": ("torchao", Quantization(method="torchao", bits=8, type="nf4", double_quantization=True)),
    "quanto": ("optimum", Quantization(method="quanto", bits=8, type="nf4", double_quantization=True)),
    "hqq": ("hqq", Quantization(method="hqq", bits=4, type="nf4", double_quantization=True)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("small") / "llama", hidden_size=128, intermediate_size=256)


def learns(model: Any) -> None:
    """LoRA after an evaluation: every adapter has a gradient on the GPU, and the loss falls."""
    model.requires_grad_(False)
    names = [name for name, _ in model.named_modules() if name.endswith("_proj")]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0)).to("cuda")
    learned = [value for value in adapted.parameters() if value.requires_grad]
    assert {value.device.type for value in learned} == {"cuda"}
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    losses = []
    for step in range(6):
        adapted.eval()
        with torch.no_grad():
            adapted(input_ids=tokens)
        adapted.train()
        loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if step == 1:
            assert all(value.grad is not None and value.grad.any() for value in learned)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def read(folder: Path, dtype: Any, quantization: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(folder),
        dtype=dtype,
        device_map={"": "cuda"},
        quantization_config=quantize.while_reading(quantization),
    )
    quantize.after_reading(model, quantization, [name for name, _ in model.named_modules() if name.endswith("_proj")])
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_quantized_while_reading(way: str, dtype: Any, small: Path) -> None:
    package, plan = WAYS[way]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    learns(read(small, dtype, quantize.held(plan, dtype)))


@pytest.mark.parametrize("name", quantized_checkpoints.NAMES)
def test_a_quantized_checkpoint(name: str, small: Path, tmp_path: Path) -> None:
    package = quantized_checkpoints.PACKAGE.get(name, "bitsandbytes")
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    folder = quantized_checkpoints.write(name, small, tmp_path / "made")
    config = json.loads((folder / "config.json").read_text())
    dtype = torch.float16 if name == "awq" else torch.bfloat16
    learns(read(folder, dtype, quantize.of_checkpoint(config, "cuda")))
