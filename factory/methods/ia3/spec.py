"""A vector that scales keys, values and the last feed-forward layer's inputs (IA³, Liu et al. 2022, section 3.3)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, Adapter, named, targets, unknown_names
from factory.methods.lora.targets import RULES as TARGET_RULES
from factory.methods.lora.targets import over_bitsandbytes as trains_over
from factory.plan.rule import Case, Rule

__all__ = ["RULES", "Settings", "optimizer_bytes", "peft", "trainable", "trains_over"]


class Settings(Adapter):
    scaled_inputs: tuple[str, ...] = Field(
        description="those of the layers whose inputs are scaled; of the others, the outputs are"
    )


def peft(method: Settings, arch: Architecture) -> dict[str, Any]:
    return {"peft_type": "IA3"}


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    adapted = targets(method, arch)
    by_input = named(method.scaled_inputs, adapted)
    return {
        f"{PREFIX}{name}.ia3_l.default": (1, inputs) if name in by_input else (outputs, 1)
        for name, (outputs, inputs) in adapted.items()
    }


def _scaled_inputs(case: Case) -> str | None:
    method = case.settings.method
    wrong = unknown_names(method.scaled_inputs, targets(method, case.arch))
    return wrong and f"of those in method.target_modules, {wrong}"


def _decayed(case: Case) -> str | None:
    return "it draws the scales towards 0" if case.settings.stage.weight_decay > 0 else None


def _in_float32(case: Case) -> str | None:
    base, precision = case.settings.method.quantization, case.settings.precision.name
    return f"with precision={precision}" if base.bits is not None and precision == "pure_bf16" else None


RULES = (
    *TARGET_RULES,
    Rule("ia3-inputs", _scaled_inputs),
    Rule("ia3-decay", _decayed),
    Rule("ia3-quantized-precision", _in_float32),
)
