"""Patch: what the model's config must say before it is built."""

from typing import Any

from factory.execute.context import Run


def patch(run: Run, config: Any) -> dict[str, Any]:
    plan = run.plan.steps.patch
    config._attn_implementation = plan.attention
    config.use_cache = False
    if plan.rope_scaling != "none":
        base = {"rope_theta": config.rope_parameters["rope_theta"], "rope_type": plan.rope_scaling}
        config.rope_parameters = {
            **base,
            "factor": plan.rope_factor,
            "original_max_position_embeddings": plan.context_length,
        }
    return {"patched": config}
