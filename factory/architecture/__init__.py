"""A model's config.json to every tensor's name and shape, in closed form: no torch, no weights.

The names and counts equal what transformers builds on the meta device, to the last one (tests/architecture).
A module per kind of family; each has a table `FAMILIES` of model_type → function(config) → Architecture.
"""

from collections.abc import Callable
from typing import Any

from factory.architecture import convolution, dense, experts, latent, legacy, vision
from factory.architecture.types import Architecture, Block, Shape
from factory.refusal import did_you_mean, refuse

# kinds that no class of transformers builds: their code comes with the model
REMOTE_CODE = frozenset({"baichuan", "chatglm", "internlm", "internlm2", "minicpm"})

__all__ = ["FAMILIES", "REMOTE_CODE", "Architecture", "Block", "Shape", "architecture"]

FAMILIES: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    **dense.FAMILIES,
    **legacy.FAMILIES,
    **latent.FAMILIES,
    **convolution.FAMILIES,
    **experts.FAMILIES,
    **vision.FAMILIES,
}


def architecture(config: dict[str, Any]) -> Architecture:
    """Reads a config.json's numbers. Raises UserError for a kind that there is no closed form for."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise refuse(
            "unknown-architecture",
            f"model_type={kind}",
            "there is no such architecture",
            hint=did_you_mean(kind, FAMILIES),
        )
    try:
        return FAMILIES[kind](config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise refuse(
            "incomplete-config", f"config.json of a {kind} model", f"a number is missing or of the wrong type ({error})"
        ) from error
