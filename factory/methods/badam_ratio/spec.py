"""Adam on a share of each tensor's elements at a time (BAdam, Luo et al. 2024, arXiv 2404.02827, its ratio mode).

Gradients are kept and Adam has a state for the chosen elements only, from nothing when others have their turn.
"""

from math import prod
from typing import Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.methods.badam.spec import Turns, notes, trainable, unfit
from factory.optimizers.spec import state_bytes

__all__ = ["RANKS", "Settings", "chosen", "copied", "gradients", "notes", "optimizer_bytes", "trainable", "unfit"]

_WHOLE = 100  # elements: smaller tensors are trained as a whole


class Settings(Turns):
    ratio: float = Field(description="share of a tensor's elements that is trained at a time", gt=0, le=1)
    mask: Literal["adjacent", "scattered"] = Field(
        description="whether these elements lie beside each other or all over the tensor"
    )


def chosen(method: Settings, size: int) -> int:
    """How many elements of a tensor of this size are trained at a time."""
    return size if size < _WHOLE else max(1, int(size * method.ratio))


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    """The chosen elements are stepped in float32."""
    return state_bytes(optimizer, {name: (chosen(method, prod(shape)),) for name, shape in shapes.items()}, arch, 4)


def gradients(method: Settings, shapes: dict[str, Shape], arch: Architecture) -> int:
    """Elements of the gradients that are there at the same time: the chosen ones, and the largest tensor's whole."""
    sizes = [prod(shape) for shape in shapes.values()]
    return sum(chosen(method, size) for size in sizes) + max(sizes, default=0)


def copied(method: Settings, shapes: dict[str, Shape], arch: Architecture, *, mixed: bool) -> int:
    """The chosen elements, in every precision."""
    return sum(chosen(method, prod(shape)) for shape in shapes.values())


RANKS = "alone"
