"""What libraries warn of in runs although nothing is wrong: each with the reason why it stays."""

import re

KNOWN: dict[str, str] = {
    r"DeprecationWarning: `torch\.jit\.script_method` is deprecated": "torch's own import uses it",
    r"FutureWarning: `is_gradient_checkpointing` is deprecated": "peft and accelerate read it",
    r"FutureWarning: `gradient_checkpointing_enable` is deprecated": "transformers 5.5 has no other name for it",
    r"RuntimeWarning: The following rank_pattern keys did not match": "peft looks for LoRA's in a pruned AdaLoRA's",
    r"bitsandbytes\.backends\.cpu\.ops: Failed to load CPU gemm_4bit_forward": "a faster one, of the hub",
    r"bitsandbytes\.autograd\._functions: MatMul8bitLt: inputs will be cast": "LLM.int8 multiplies in float16",
}


def unknown(told: list[str]) -> list[str]:
    """Those of the lines that nothing explains."""
    return [line for line in told if not any(re.match(pattern, line) for pattern in KNOWN)]
