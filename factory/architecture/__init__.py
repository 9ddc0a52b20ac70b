"""A model's config.json to every tensor's name and shape, in closed form: no torch, no weights.

The names and counts equal what transformers builds on the meta device, to the last one (tests/architecture).
A module per kind of family; each has a table `FAMILIES` of model_type → function(config) → Architecture.
"""

from collections.abc import Callable
from typing import Any

from factory.architecture import convolution, dense, experts, latent, legacy, towers, vision
from factory.architecture.traits import TRAITS, UNKNOWN, USUAL, Traits
from factory.architecture.types import Architecture, Block, Shape, elements
from factory.config.refusal import did_you_mean, refuse

__all__ = [
    "FAMILIES",
    "REMOTE_CODE",
    "Architecture",
    "Block",
    "Shape",
    "Traits",
    "architecture",
    "elements",
    "media_of",
    "sliding_window",
    "text_numbers",
    "traits_of",
]

REMOTE_CODE = frozenset(kind for kind, row in TRAITS.items() if row.remote_code)

FAMILIES: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    **dense.FAMILIES,
    **legacy.FAMILIES,
    **latent.FAMILIES,
    **convolution.FAMILIES,
    **experts.FAMILIES,
    **vision.FAMILIES,
}


def traits_of(kind: str) -> Traits:
    return TRAITS.get(kind, USUAL if kind in FAMILIES else UNKNOWN)


def media_of(arch: Architecture) -> tuple[str, ...]:
    """What the model takes beside text, by the record's columns."""
    return (arch.traits or traits_of(arch.kind)).media


def sliding_window(config: dict[str, Any]) -> int | None:
    """Of how many tokens some layers see the last ones only; None where all see all."""
    numbers = text_numbers(config)
    return numbers.get("sliding_window") if numbers.get("use_sliding_window", True) else None


def text_numbers(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json: all of it, unless the model sees or hears."""
    return config.get("text_config") or config


def architecture(config: dict[str, Any]) -> Architecture:
    """Reads a config.json's numbers. Raises UserError for a kind that there is no closed form for."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise refuse(
            "unknown-architecture",
            f"model_type={kind}",
            "there is no such architecture",
            because="parameters and memory could not be estimated, nor the model be built",
            fix=f"{did_you_mean(kind, FAMILIES)}use a newer transformers, or another model",
        )
    try:
        _check(config)
        return FAMILIES[kind](config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise refuse(
            "incomplete-config",
            f"config.json of a {kind} model",
            f"a number is missing or of the wrong type ({error})",
            because="the architecture cannot be built from it",
            fix="restore config.json from the model's source",
        ) from error


_ALIASES = dense.ALIASES | {word: name for words in towers.WORDS.values() for word, name in words.items()}
_COUNTS = {*_ALIASES, *_ALIASES.values(), "intermediate_size", "num_key_value_heads", "head_dim"}
_MAPPINGS = ("rope_parameters", "rope_scaling", "quantization_config")
_MOST = {"num_hidden_layers": 10_000}
_LARGEST = 2**40  # of any count: far above every model's, far below what would take minutes to plan


def _check(config: dict[str, Any]) -> None:
    """Raises ValueError for a number that no model has: what transformers would refuse after the weights were read."""
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        for key, value in part.items() if isinstance(part, dict) else ():
            if value is not None and not _possible(key, value):
                raise ValueError(f"{key}={value!r}")


def _possible(key: str, value: Any) -> bool:
    if key in _COUNTS and not isinstance(value, list):
        return type(value) is int and 1 <= value <= _MOST.get(_ALIASES.get(key, key), _LARGEST)
    if key in _MAPPINGS:
        return isinstance(value, dict)
    return key != "tie_word_embeddings" or isinstance(value, bool)
