"""A vector that scales keys, values and the last feed-forward layer's inputs (IA³, Liu et al. 2022, section 3.3)."""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.full.spec import optimizer_bytes
from factory.methods.lora.targets import PREFIX, Adapter, named, targets, unknown_names
from factory.methods.lora.targets import over_bitsandbytes as trains_over
from factory.plan.rule import Case, rule

__all__ = ["Settings", "optimizer_bytes", "peft", "trainable", "trains_over"]


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


@rule(
    "ia3-inputs",
    keys=("method.scaled_inputs", "method.target_modules", "model.path"),
    reason="a layer's input is scaled in place of its output",
    fix="name layers that method.target_modules names too",
)
def ia3_inputs(case: Case) -> str | None:
    method = case.settings.method
    wrong = unknown_names(method.scaled_inputs, targets(method, case.arch))
    return wrong and f"of those in method.target_modules, {wrong}"
