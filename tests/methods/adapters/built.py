"""A method's model as the executor attaches it, trained for a step or two by hand, and read back as others read it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from conftest import compiled
from safetensors.torch import load_file
from torch import Tensor

from factory.architecture import Architecture
from factory.config import registry
from factory.execute.context import Run
from factory.methods.lora.targets import PREFIX, targets
from factory.plan.plan import Plan
from factory.run.folder import RunFolder
from factory.steps.attach import attach
from factory.steps.kernels import replace_kernels
from factory.steps.quantize import keep_gradients, quantize

IDS = (torch.arange(2 * 24).reshape(2, 24) * 37) % 500 + 3
QUANTIZED = {
    "none": ("method.quantization.bits=null",),
    "nf4": ("method.quantization.bits=4",),
    "int8": ("method.quantization.bits=8",),
}


@dataclass
class Built:
    model: Any
    settings: Any
    arch: Architecture
    plan: Plan
    folder: Path
    quantization: Any

    @property
    def method(self) -> ModuleType:
        return registry.run("methods", self.plan.settings.method.name)

    @property
    def trained(self) -> dict[str, Any]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def logits(self, model: Any = None) -> Tensor:
        with torch.no_grad():
            return (self.model if model is None else model).eval()(input_ids=IDS).logits

    def base(self, *, quantized: bool = True) -> Any:
        """The model's folder, read again."""
        from transformers import AutoModelForCausalLM

        made = self.quantization if quantized else None
        read = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=torch.float32,
            quantization_config=made,
            device_map=None if made is None else {"": "cpu"},
        )
        keep_gradients(read)
        if (
            made is not None and self.plan.settings.method.quantization.bits == 8
        ):  # it rounds what comes in: all digits must be alike
            replace_kernels(read, self.plan.steps.patch)
        return read.eval()

    def train(self, steps: int = 3, rate: float = 1e-2) -> set[str]:
        """Trains on IDS; returns the tensors that never had a gradient."""
        optimizer = self.method.optimizer(self.model, self.settings, self.plan, self.arch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        dead = set(self.trained)
        self.model.train()
        for _ in range(steps):
            self.model(input_ids=IDS, labels=IDS).loss.backward()
            dead = {name for name in dead if self.trained[name].grad is None or not self.trained[name].grad.any()}
            optimizer.step()
            optimizer.zero_grad()
        return dead

    def exported(self, *, quantized: bool = True) -> Any:
        """Saved, and loaded by PEFT onto the base as it was."""
        from peft import PeftModel

        folder = Path(tempfile.mkdtemp())
        self.method.export(self.model, self.settings, folder)
        return PeftModel.from_pretrained(self.base(quantized=quantized), folder).eval()


def built(folder: Path, *overrides: str) -> Built:
    """Through the plan and the executor's own steps, in float32."""
    from transformers import AutoConfig

    plan = compiled(f"model.path={folder}", "hardware=cpu", "tracking=none", "precision=fp32", *overrides)
    run = Run(plan=plan, folder=RunFolder(tempfile.mkdtemp()), resume_from=None)
    quantization = quantize(run)["quantization"]
    given = attach(run, AutoConfig.from_pretrained(folder), quantization)
    assert run.checks["trainable_as_planned"]["passed"]
    return Built(given["model"], run.plan.settings.method, given["arch"], plan, folder, quantization)


def saved_pruned(made: Built, folder: Path, kept: list[bool]) -> dict[str, Tensor]:
    """An AdaLoRA of which each layer kept these ranks, of numbers that bfloat16 would round: what its file has."""
    pattern = {f"{name}.lora_E": kept for name in targets(made.settings, made.arch)}
    made.model.peft_config["default"].rank_pattern = pattern
    with torch.no_grad():
        for value in made.trained.values():
            value.normal_()
    made.method.export(made.model, made.settings, folder)
    return load_file(folder / "adapter_model.safetensors")


def weight_of(model: Any, name: str) -> Tensor:
    """The weight below the adapter as (out, in), dequantized."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    module = model.get_submodule(f"{PREFIX}{name}")
    layer = module.get_base_layer()
    if layer.weight.dtype == torch.int8:
        return layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    held = dequantize_module_weight(layer).detach().float()
    return held.T if isinstance(layer, Conv1D) else held
