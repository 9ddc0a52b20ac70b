"""Every weight is trained."""

from dataclasses import dataclass
from math import prod

from factory import schema
from factory.architecture import Architecture, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Method):
    pass


RULES = ()

QUANTIZABLE = False  # whether it trains beside a base that stays quantized


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    return dict(arch.tensors())


def optimizer_elements(method: Settings, shapes: dict[str, Shape]) -> int:
    """AdamW's two moments of each trained element."""
    return 2 * sum(prod(shape) for shape in shapes.values())
