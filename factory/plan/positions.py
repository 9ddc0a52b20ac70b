"""Rules of how long a sequence may be, and of rotary positions that are stretched."""

from factory.architecture import FAMILIES, text_numbers, traits_of
from factory.architecture.positions import scalings
from factory.plan import choices
from factory.plan.rule import Broken, Case, rule


@rule(
    "context-unknown",
    keys=("model.context_length", "model.path"),
    reason="sequences longer than the model was made for train nonsense",
    fix="set model.context_length to what the model's card says",
)
def context_unknown(case: Case) -> str | None:
    return "the model's config.json does not say it" if choices.context_length(case) is None else None


@rule(
    "beyond-context",
    keys=("data.max_length", "model.context_length", "model.rope_scaling", "model.path"),
    reason="positions that the model never saw come out as noise",
    fix="lower data.max_length",
)
def beyond_context(case: Case) -> Broken | None:
    length, context = case.settings.data.max_length, choices.context_length(case)
    if context is None or length == "auto" or length <= context or case.settings.model.rope_scaling != "none":
        return None
    way = "set model.rope_scaling=linear (or dynamic, yarn)"
    if _scaled(case) or _unscalable(case):
        way = "where the model's card says more, set model.context_length"
    return Broken(message=f"the model was made for {context:,} tokens", fix=f"lower data.max_length, or {way}")


@rule(
    "rope-scaling",
    keys=("model.rope_scaling", "data.max_length", "model.context_length", "model.path"),
    reason="only rotary positions can be stretched, once, by the factor of max_length over context",
    fix="set model.rope_scaling=none, and data.max_length within the context",
)
def rope_scaling(case: Case) -> str | Broken | None:
    length, context = case.settings.data.max_length, choices.context_length(case)
    if case.settings.model.rope_scaling == "none":
        return None
    if (kind := _unscalable(case)) is not None:
        return f"a {kind} model has no rotary positions that can be scaled"
    if kinds := _scaled(case):
        return f"the model's own positions are scaled ({', '.join(kinds)})"
    if context is None or (length != "auto" and length > context):
        return None
    wrong = f"sequences of {choices.max_length(case, context):,} tokens fit the context of {context:,}"
    return Broken(message=wrong, fix="set model.rope_scaling=none, or a data.max_length beyond the context")


def _scaled(case: Case) -> list[str]:
    return scalings(text_numbers(case.model.config))


def _unscalable(case: Case) -> str | None:
    """Return the kind of a model that has no positions which could be scaled."""
    config = text_numbers(case.model.config)
    kind = config.get("model_type") or case.arch.kind
    own = traits_of(kind) if kind in FAMILIES else case.traits
    return kind if not own.scalable or config.get("alibi") else None
