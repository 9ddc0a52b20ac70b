"""Which models the kernels of Liger and of Unsloth are for. No torch.

Read from the published sources of liger-kernel 0.8.5 (`transformers/monkey_patch.py`) and unsloth 2026.10.9
(`models/loader.py`, FastLanguageModel.from_pretrained); tests compare the tables with an installed distribution.
"""

_SWISH, _TANH_GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
_SWIGLU = """
    exaone4 glm4 hunyuan_v1_dense llama ministral mistral olmo2 olmo3 phi3 qwen2 qwen3 smollm3
"""
# Decoders without experts that have a public `apply_liger_kernel_to_TYPE`: the activations that its gated MLP computes.
# Not granite: the library's own notes say that its SwiGLU differs there.
LIGER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_SWIGLU.split(), _SWISH),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _TANH_GELU),
}
LIGER_HEAD_NORMS = ("exaone4", "gemma3_text", "qwen3")  # whose norms of queries and keys it replaces too
LIGER_WITHOUT_ROPE = ("glm4",)
# Decoders that FastLanguageModel loads by classes of its own, which take packed rows by their position_ids
UNSLOTH = ("gemma", "llama", "mistral", "qwen2", "qwen3")


def without_liger(kind: str, config: dict[str, object]) -> str | None:
    """Return why Liger's kernels do not fit a model of this type and text config, or None where they do.

    The library replaces the MLP of a built model whatever its activation is, so the activation is checked here.
    """
    if kind not in LIGER:
        return f"its kernels are used for {', '.join(sorted(LIGER))}, and the model is {kind}"
    activation = config.get("hidden_activation") or config.get("hidden_act") or LIGER[kind][0]
    return None if activation in LIGER[kind] else f"its MLP computes {LIGER[kind][0]}, and the model's is {activation}"
