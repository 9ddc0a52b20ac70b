"""Which part of a model a tensor is of: a model that sees or hears has more than a language model."""

from collections.abc import Callable, Iterable
from typing import Any

from factory.architecture import Architecture, Shape, media_of
from factory.plan.rule import Case

# what stands between the tower and the language model, in transformers' words, and what a tower is that hears
_PROJECTORS = ("projector", "connector", "merger", "modality_projection", "perceiver")
_EARS = ("audio",)
# which media give a part its gradients, by the record's columns: text alone trains none of them
_REACHED_BY = {
    "vision": ("images", "videos"),
    "audio": ("audios",),
    "projector": ("images", "videos", "audios"),
}


def part_of(name: str, arch: Architecture) -> str:
    """`language`, `vision`, `audio` or `projector` of a tensor or a linear layer: what text trains is language."""
    if not f"{name}.".startswith(tuple(arch.parts.values())):
        return "language"
    if any(word in name for word in _PROJECTORS):
        return "projector"
    return "audio" if media_of(arch) == ("audios",) or any(word in name for word in _EARS) else "vision"


def beside_text(names: Iterable[str], arch: Architecture) -> frozenset[str]:
    """Those of a model's tensors, an adapter's too, that no text alone reaches."""
    return frozenset(name for name in names if any(f".{part}" in f".{name}" for part in arch.parts.values()))


def parts_of(arch: Architecture) -> set[str]:
    """The parts that the model has."""
    return {part_of(name, arch) for name, _ in arch.tensors()}


def of_parts(shapes: dict[str, Shape], parts: tuple[str, ...], arch: Architecture) -> dict[str, Shape]:
    """Those of the tensors, or linear layers, that are in one of the parts, and that the model's class lets train."""
    fixed = {*arch.fixed, *(name.removesuffix(".weight") for name in arch.fixed)}
    return {name: shape for name, shape in shapes.items() if name not in fixed and part_of(name, arch) in parts}


def nothing_trains(trainable: Callable[[Any, Architecture], dict[str, Shape]]) -> Callable[[Case], str | None]:
    """A rule's test: whether no tensor is in the chosen parts."""

    def wrong(case: Case) -> str | None:
        method, arch = case.settings.method, case.arch
        if trainable(method, arch):
            return None
        return f"nothing of this model would be trained; its parts are {', '.join(sorted(parts_of(arch)))}"

    return wrong


def of_language(
    trainable: Callable[[Any, Architecture], dict[str, Shape]], *keys: str
) -> Callable[[Case], tuple[str, str] | None]:
    """A rule's test: whether one of the method's keys is asked for that nothing reads where other parts alone train."""

    def unread(case: Case) -> tuple[str, str] | None:
        method = case.settings.method
        if "language" in method.parts or not trainable(method, case.arch):
            return None
        wrong = f"it is of the language model, and method.parts=[{','.join(method.parts)}] leaves that out"
        return next(((f"method.{key}", wrong) for key in keys if case.asked(f"method.{key}")), None)

    return unread


def needs_media(case: Case) -> str | None:
    """A rule's test: whether a part is chosen that nothing in the data ever reaches."""
    given, there = _given(case), parts_of(case.arch)
    chosen = [part for part in case.settings.method.parts if part in _REACHED_BY and part in there]
    unreached = [part for part in chosen if not given & set(_REACHED_BY[part])]
    if not unreached:
        return None
    ways, taken = [_REACHED_BY[part] for part in unreached], media_of(case.arch)
    asked = dict.fromkeys(media for way in ways for media in [each for each in way if each in taken] or way)
    return f"only {' or '.join(asked)} train its {' and its '.join(unreached)}, and the data has none"


def _given(case: Case) -> set[str]:
    """What the data has beside text."""
    return {column for data in case.facts.data.values() for column in data.media}
