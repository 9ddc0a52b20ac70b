"""LoRA on a base in 4-bit NormalFloat with double quantization (QLoRA, Dettmers et al. 2023, section 3)."""

from factory.compile.rule import Case, Rule
from factory.methods.lora.spec import RULES as LORA_RULES
from factory.methods.lora.spec import (
    Settings,
    notes,
    optimizer_bytes,
    peft,
    saved,
    starts_from_weights,
    trainable,
    trains_over,
)

__all__ = [
    "RULES",
    "Settings",
    "notes",
    "optimizer_bytes",
    "peft",
    "saved",
    "starts_from_weights",
    "trainable",
    "trains_over",
]


def _not_quantized(case: Case) -> str | None:
    return "qlora is lora on a quantized base" if case.settings.method.quantization.bits is None else None


RULES = (
    *LORA_RULES,
    Rule("qlora-needs-bits", _not_quantized),
)
