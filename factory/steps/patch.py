"""Patch: what the model's config must say before it is built."""

from typing import Any

from factory.attention import register
from factory.execute.context import Run

# what a scaling says beside its factor. `original`: the context before, under the name that transformers reads
_OWN: dict[str, dict[str, float]] = {
    "linear": {},  # position interpolation (Chen et al. 2023, arXiv 2306.15595, equation 4)
    "dynamic": {},  # NTK-aware, by the length of the batch at hand (arXiv 2309.00071, section 3.4)
    "yarn": {"beta_fast": 32.0, "beta_slow": 1.0},  # Peng et al. 2023, arXiv 2309.00071, sections 3.2 and 3.3
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},  # the numbers of Llama 3.1's config.json
}
# these keep the old context beside the new one; linear's and dynamic's readers multiply the old one by the factor
_KEEP_ORIGINAL = ("yarn", "llama3")
_GLOBAL = "full_attention"


def patch(run: Run, config: Any) -> dict[str, Any]:
    plan = run.plan.steps.patch
    register(plan.attention, plan.group_size)
    config._attn_implementation = plan.attention
    config.use_cache = False
    if (scaling := run.plan.settings.model.rope_scaling) != "none":
        scale_positions(config, scaling, plan.rope_factor, plan.context_length)
    return {"patched": config}


def scale_positions(config: Any, scaling: str, factor: float, context: int) -> None:
    """Stretches the rotary positions (of a vision model's language part), made for `context`, by the factor.

    Where each kind of layer has its own, those of global attention are stretched alone: a window never looks further
    than it did (Gemma 3, arXiv 2503.19786, section 2.1).
    """
    kept = scaling in _KEEP_ORIGINAL
    new = {"rope_type": scaling, "factor": factor, **_OWN[scaling]}
    if kept:
        new["original_max_position_embeddings"] = context
    text = config.get_text_config()
    if "head_dim" in text.to_dict() and text.head_dim is None:  # dynamic and yarn read it without its default
        text.head_dim = text.hidden_size // text.num_attention_heads
    old = text.rope_parameters  # theta, and the share of a head that turns, stay
    text.rope_parameters = {**old, _GLOBAL: {**old[_GLOBAL], **new}} if _GLOBAL in old else {**old, **new}
    text.max_position_embeddings = round(factor * context) if kept else context
