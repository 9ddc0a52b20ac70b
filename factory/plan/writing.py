"""Rules of models that write: chat and serve."""

from factory.plan import choices, heads
from factory.plan.bases import own_base
from factory.plan.rule import Case, Rule

GROUPS = ("engine", "generation")  # that they alone read
_MASKED = ("auto", "eager", "sdpa")


def _writes(case: Case) -> bool:
    return case.settings.verb in choices.WRITES


def _scores(case: Case) -> str | None:
    stage = case.settings.stage.name
    silent = case.settings.verb == "chat" and not heads.writes(stage)
    return f"a model of stage={stage} gives scores" if silent else None


def _untrained_head(case: Case) -> str | None:
    drawn = [name for name in case.heads if heads.goes_on(name, case.model) is None]
    wrong = case.settings.verb == "serve" and drawn
    return f"{heads.file_of(drawn[0])} is neither in model.adapter nor in model.path" if wrong else None


def _attention(case: Case) -> str | None:
    asked, engine = case.settings.compute.attention, case.settings.engine.name
    wrong = _writes(case) and engine == "transformers" and asked not in _MASKED
    return f"engine={engine} does not write with it" if wrong else None


def _engine_key(case: Case) -> str | None:
    engine = case.settings.engine
    unread = engine.name == "transformers" and engine.memory_fraction is not None
    return f"engine={engine.name} does not read it" if _writes(case) and unread else None


def _vllm_weights(case: Case) -> tuple[str, str] | None:
    settings = case.settings
    if not _writes(case) or settings.engine.name != "vllm":
        return None
    wrong = "engine=vllm cannot do that"
    if settings.method.quantization.bits is not None:
        return "method.quantization.bits", wrong
    if settings.model.new_tokens:
        return "model.new_tokens", wrong
    if settings.model.rope_scaling != "none":
        return "model.rope_scaling", wrong
    if case.model.adapter is not None and case.model.adapter.base is not None:
        return "model.adapter", "its base's positions are stretched, and engine=vllm reads the base's own"
    return None if heads.writes(settings.stage.name) else ("stage.name", wrong)


def _names(case: Case) -> str | None:
    serve = case.settings.serve
    if case.settings.verb != "serve":
        return None
    return f"{serve.name} names two models" if serve.name in serve.adapters else None


def _adapters_beside(case: Case) -> str | None:
    beside = case.settings.verb == "serve" and case.settings.serve.adapters and own_base(case) == "rebuilt"
    return "the model that is served has a base to itself, quantized without its adapter's start" if beside else None


RULES = (
    Rule("writes-scores", _scores),
    Rule("writes-untrained-head", _untrained_head),
    Rule("writes-attention", _attention),
    Rule("engine-key", _engine_key),
    Rule("engine-vllm-weights", _vllm_weights),
    Rule("serve-name", _names),
    Rule("serve-own-base", _adapters_beside),
)
