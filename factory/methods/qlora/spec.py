"""LoRA on a base in 4-bit NormalFloat with double quantization (QLoRA, Dettmers et al. 2023, section 3)."""

from factory.methods.lora import spec as lora

Settings = lora.Settings
notes = lora.notes
optimizer_bytes = lora.optimizer_bytes
peft = lora.peft
saved = lora.saved
starts_from_weights = lora.starts_from_weights
trainable = lora.trainable
trains_over = lora.trains_over
written = lora.written
