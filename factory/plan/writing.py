"""Rules of models that write: chat and serve."""

from factory.plan import choices, heads
from factory.plan.bases import own_base
from factory.plan.rule import Broken, Case, rule

GROUPS = ("engine", "generation")  # that they alone read


MASKED = ("auto", "eager", "sdpa")  # attention that engine=transformers writes with


def _writes(case: Case) -> bool:
    return case.settings.verb in choices.WRITES


@rule(
    "engine-vllm-weights",
    keys=(
        "engine.name",
        "method.quantization.bits",
        "model.new_tokens",
        "model.rope_scaling",
        "model.adapter",
        "stage.name",
    ),
    reason="vLLM reads the files of the model itself, as they are",
    fix=(
        "engine=transformers, or save the model so first (`factory export`); method.quantization.bits=null "
        "reads a quantized run's published weights"
    ),
)
def engine_vllm_weights(case: Case) -> Broken | None:
    settings = case.settings
    if not _writes(case) or settings.engine.name != "vllm":
        return None
    message = "engine=vllm cannot do that"
    if settings.method.quantization.bits is not None:
        return Broken(key="method.quantization.bits", message=message)
    if settings.model.new_tokens:
        return Broken(key="model.new_tokens", message=message)
    if settings.model.rope_scaling != "none":
        return Broken(key="model.rope_scaling", message=message)
    if case.model.adapter is not None and case.model.adapter.base is not None:
        stretched = "its base's positions are stretched, and engine=vllm reads the base's own"
        return Broken(key="model.adapter", message=stretched)
    return None if heads.writes(settings.stage.name) else Broken(key="stage.name", message=message)


@rule(
    "serve-own-base",
    keys=("serve.adapters", "model.adapter", "method.quantization.method", "method.quantization.bits"),
    reason="weights that lack the start of one adapter are the right ones for that adapter alone",
    fix="serve it by itself (`factory serve run=FOLDER`), or write it whole (`factory export`)",
)
def serve_own_base(case: Case) -> str | None:
    beside = case.settings.verb == "serve" and case.settings.serve.adapters and own_base(case) == "rebuilt"
    return "the model that is served has a base to itself, quantized without its adapter's start" if beside else None
