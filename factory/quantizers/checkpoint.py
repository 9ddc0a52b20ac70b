"""What a checkpoint's own config.json says of how its weights are quantized: for the choices too, which come first."""

from typing import Any


def checkpoint_quantizer(config: dict[str, Any]) -> str | None:
    """The name that a quantized checkpoint's config.json gives its quantizer; None: it is not quantized."""
    said = config.get("quantization_config")
    if not said:
        return None
    legacy = "bitsandbytes" if said.get("load_in_4bit") or said.get("load_in_8bit") else "unnamed"
    return said.get("quant_method") or legacy


def in_half(config: dict[str, Any], device: str) -> bool:
    """Whether transformers casts whatever was said to float16, as AWQ's kernels for a GPU want it."""
    return checkpoint_quantizer(config) == "awq" and device == "cuda"
