"""What libraries warn of in runs although nothing is wrong: each with the reason why it stays."""

import re

KNOWN: dict[str, str] = {
    r"DeprecationWarning: `torch\.jit\.script_method` is deprecated": "torch's own import uses it",
    r"FutureWarning: `is_gradient_checkpointing` is deprecated": "peft and accelerate read it",
    r"FutureWarning: `gradient_checkpointing_enable` is deprecated": "transformers 5.5 has no other name for it",
    r"RuntimeWarning: The following rank_pattern keys did not match": "peft looks for LoRA's in a pruned AdaLoRA's",
    r"PeftWarning: Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape": "AdaLoRA gives some matrices no rank",
    r"transformers\.modeling_utils: We strongly recommend passing in an `attention_mask`": "padding comes last",
    r"transformers\.modeling_rope_utils: (Unrecognized|Missing|`rope_parameters`)": "of configs of its own",
    r"transformers\.modeling_utils: .*LOAD REPORT": "of weights that are missing, which a check is red for",
    r"DeprecationWarning: __array__ implementation doesn't accept": "PaliGemma's processor, of images",
    r"transformers\.integrations\.hub_kernels: `\w+` is falling back": "its faster kernels are of other packages",
    r"bitsandbytes\.backends\.cpu\.ops: Failed to load CPU gemm_4bit_forward": "a faster one, of the hub",
    r"bitsandbytes\.autograd\._functions: MatMul8bitLt: inputs will be cast": "LLM.int8 multiplies in float16",
}


def unknown(told: list[str]) -> list[str]:
    """Those of the lines that nothing explains."""
    return [line for line in told if not any(re.match(pattern, line) for pattern in KNOWN)]
