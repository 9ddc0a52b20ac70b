"""What a config.json says of rotary positions: how they are stretched, and how far they reach."""

from typing import Any

# rotary positions that nothing stretches; `mrope` only parts them by time, height and width
_UNSCALED = {"default", "mrope"}
_GLOBAL = "full_attention"
_TURNED = ("dynamic", "longrope")


def scalings(text: dict[str, Any]) -> list[str]:
    """The ways in which the positions of a language model's config are stretched; some kinds of layers have their own.

    Older files have `rope_scaling`, and `type`.
    """
    said = _said(text)
    each = [own for own in said.values() if isinstance(own, dict)] or [said]
    return sorted({_kind(own) for own in each} - _UNSCALED)


def reach(text: dict[str, Any]) -> int | None:
    """Tokens that the positions of a language model's config were made for; None: it does not say.

    Beside linear's and dynamic's factor max_position_embeddings is the length before, beside yarn's where no other is
    said to be (transformers' modeling_rope_utils.py reads them so, as vLLM does); else the factor is counted in.
    """
    context = text.get("max_position_embeddings")
    if context is None:
        return None
    said = _said(text)
    own = said.get(_GLOBAL) or said  # a window looks no further than it did
    before = own.get("original_max_position_embeddings") or context
    if _kind(own) in ("linear", "dynamic") or (_kind(own) == "yarn" and before == context):
        return round(int(context) * own["factor"])
    return int(context)


def alike(text: dict[str, Any]) -> int | None:
    """The longest row whose tokens stand at the same positions whatever stands beside it; None: any.

    Beyond it these ways turn all rows of a batch by the longest (transformers' dynamic_rope_update): dynamic's grow
    with it, and stay so until a short one comes; longrope has two.
    """
    said, context = _said(text), text.get("max_position_embeddings")
    each = [own for own in said.values() if isinstance(own, dict)] or [said]
    found = (own.get("original_max_position_embeddings") or context for own in each if _kind(own) in _TURNED)
    return min((int(length) for length in found if length is not None), default=None)


def _said(text: dict[str, Any]) -> dict[str, Any]:
    return text.get("rope_parameters") or text.get("rope_scaling") or {}


def _kind(own: dict[str, Any]) -> str:
    return str(own.get("rope_type") or own.get("type") or "default")
