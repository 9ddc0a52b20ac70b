"""LoRA on a base in 4-bit NormalFloat with double quantization (QLoRA, Dettmers et al. 2023, section 3)."""

from factory.methods.lora import spec as lora
from factory.plan.rule import Case, Rule

Settings = lora.Settings
notes = lora.notes
optimizer_bytes = lora.optimizer_bytes
peft = lora.peft
saved = lora.saved
starts_from_weights = lora.starts_from_weights
trainable = lora.trainable
trains_over = lora.trains_over
written = lora.written


def _not_quantized(case: Case) -> str | None:
    return "qlora is lora on a quantized base" if case.settings.method.quantization.bits is None else None


RULES = (*lora.RULES, Rule("qlora-needs-bits", _not_quantized))
