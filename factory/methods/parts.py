"""Which part of a model a tensor is of: a model that sees has more than a language model."""

from collections.abc import Callable
from typing import Any

from factory.architecture import Architecture, Shape
from factory.compile.rule import Case

# what stands between the vision tower and the language model, in transformers' words
_PROJECTORS = ("projector", "connector", "merger", "modality_projection", "perceiver")


def part_of(name: str, arch: Architecture) -> str:
    """`language`, `vision` or `projector` of a tensor or a linear layer: what text alone trains is language."""
    if not f"{name}.".startswith(tuple(arch.parts.values())):
        return "language"
    return "projector" if any(word in name for word in _PROJECTORS) else "vision"


def of_parts(shapes: dict[str, Shape], parts: tuple[str, ...], arch: Architecture) -> dict[str, Shape]:
    """Those of the tensors that are in one of the parts, and that the model's class lets train."""
    fixed = frozenset(arch.fixed)
    return {name: shape for name, shape in shapes.items() if name not in fixed and part_of(name, arch) in parts}


def nothing_trains(trainable: Callable[[Any, Architecture], dict[str, Shape]]) -> Callable[[Case], str | None]:
    """A rule's test: whether no tensor is in the chosen parts."""

    def wrong(case: Case) -> str | None:
        method, arch = case.settings.method, case.arch
        if trainable(method, arch):
            return None
        there = sorted({part_of(name, arch) for name, _ in arch.tensors()})
        return f"nothing of this model would be trained; its parts are {', '.join(there)}"

    return wrong


def needs_images(case: Case) -> str | None:
    """A rule's test: whether a part is chosen that text alone never reaches."""
    if any(data.media for data in case.facts.data.values()):
        return None
    arch = case.arch
    there = {part_of(name, arch) for name, _ in arch.tensors()}
    unreached = [part for part in case.settings.method.parts if part != "language" and part in there]
    return f"only images train its {' and its '.join(unreached)}, and the data has none" if unreached else None
