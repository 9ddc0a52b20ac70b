"""Which part of a model a tensor is of: a model that sees or hears has more than a language model."""

from collections.abc import Iterable

from factory.architecture import Architecture, Shape, media_of
from factory.plan.rule import Case, rule

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


@rule(
    "nothing-trains",
    keys=("method.parts", "method.name", "model.path"),
    reason="a run that changes no weight is a mistake",
    fix="set method.parts to parts that the model has, or another method; `factory evaluate` measures a model as it is",
)
def nothing_trains(case: Case) -> str | None:
    """Leave methods that name what they train to their own rules, which say which name is wrong."""
    method = case.settings.method
    names = hasattr(method, "target_modules") or hasattr(method, "modules")
    return None if names or case.settings.verb != "train" else nothing_there(case)


def nothing_there(case: Case) -> str | None:
    """Return what is wrong where the chosen parts of the model have nothing to train."""
    if case.trained or case.heads:
        return None
    return f"nothing of this model would be trained; its parts are {', '.join(sorted(parts_of(case.arch)))}"


@rule(
    "parts-need-images",
    keys=("method.parts", "model.path", "data.sources"),
    reason="from text alone these tensors get no gradient, and would stay as they are",
    fix="set method.parts=[language]",
)
def parts_need_images(case: Case) -> str | None:
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
