"""Adam on one block of the model at a time (BAdam, Luo et al. 2024, arXiv 2404.02827, algorithm 1).

A block is a decoder layer; what is outside of the layers is trained, if at all, as blocks of its own (the embedding,
the head, the vision tower). Gradients and Adam's state exist for one block only, and the state starts from nothing
when the block is changed. In mixed precision all weights are held in 16 bits and the block's are copied in float32
(2M + 16M/D bytes for M parameters in D blocks of one size).
"""

from math import prod
from typing import Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.settings import Method
from factory.methods.parts import of_parts
from factory.optimizers.spec import NEEDS_GPU, no_adam, state_bytes


class Turns(Method):
    switch_interval: int = Field(description="optimizer steps before other weights have their turn", ge=1)
    embedding: bool = Field(description="the embedding is trained too")
    head: bool = Field(description="the output head and the last norm are trained too")


class Settings(Turns):
    order: Literal["ascending", "descending", "random"] = Field(
        description="how the blocks follow each other: from the first layer, from the last, or shuffled anew each "
        "time round"
    )


def blocks(method: Turns, arch: Architecture) -> list[dict[str, Shape]]:
    """The blocks' tensors from the model's input to its output. A tied head is the embedding."""
    language = of_parts(arch.outside, ("language",), arch)
    embedding = {name: shape for name, shape in language.items() if name.startswith(f"{arch.embedding}.")}
    head = {name: shape for name, shape in language.items() if name not in embedding}
    found = [of_parts(dict(arch.tensors()), (part,), arch) for part in method.parts if part != "language"]
    if "language" in method.parts:
        found += [embedding] if method.embedding else []
        found += [of_parts(arch.layer_tensors(index), ("language",), arch) for index in range(arch.layers)]
        found += [head] if method.head else []
    return [block for block in found if block]


def trainable(method: Turns, arch: Architecture) -> dict[str, Shape]:
    """All that is trained at some step."""
    return {name: shape for block in blocks(method, arch) for name, shape in block.items()}


def notes(method: Turns, arch: Architecture) -> tuple[str, ...]:
    if not (method.head and arch.tied) or method.embedding:
        return ()
    return ("method.head=true: of it the last norm alone, as the head is the embedding (method.embedding=true)",)


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    """The state of the largest block."""
    return max((state_bytes(optimizer, block, arch, size) for block in blocks(method, arch)), default=0)


def gradients(method: Settings, shapes: dict[str, Shape], arch: Architecture) -> int:
    """Elements of the gradients that are there at the same time: the largest block's."""
    return max((sum(prod(shape) for shape in block.values()) for block in blocks(method, arch)), default=0)


def copied(method: Settings, shapes: dict[str, Shape], arch: Architecture, *, mixed: bool) -> int:
    """The largest block's elements, where it is stepped in another type than it is held in."""
    return gradients(method, shapes, arch) if mixed else 0


RANKS = "alone"


def unfit(optimizer: str) -> str | None:
    """Return why the method cannot step with an optimizer. Each turn makes one; a paged state is never freed."""
    paged = f"of {optimizer} bitsandbytes frees no state, and each turn makes one" if optimizer in NEEDS_GPU else None
    return no_adam(optimizer) or paged
