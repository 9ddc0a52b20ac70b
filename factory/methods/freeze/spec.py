"""Some decoder layers are trained, the rest is frozen (freeze-tuning: Houlsby et al. 2019; the paper, section 3.1)."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.refusal import did_you_mean
from factory.config.settings import Method
from factory.methods.full.spec import optimizer_bytes
from factory.methods.parts import nothing_trains, of_language, of_parts
from factory.plan.rule import Case, Rule

__all__ = ["RULES", "Settings", "optimizer_bytes", "shown", "trainable"]


class Settings(Method):
    num_layers: int = Field(description="how many decoder layers to train", ge=1)
    position: Literal["last", "first"] = Field(description="which end of the model they are counted from")
    layers: tuple[int, ...] | None = Field(description="train just these decoder layers (from 0) instead")
    modules: tuple[str, ...] | Literal["all"] = Field(
        description="what to train of a layer, by name (mlp, self_attn.q_proj …), or all"
    )
    extra_modules: tuple[str, ...] = Field(
        description="what to train outside of the layers, by name (embed_tokens, norm, lm_head …)"
    )


def chosen(method: Settings, arch: Architecture) -> tuple[int, ...]:
    if method.layers is not None:
        return tuple(sorted(set(method.layers)))
    indices = range(arch.layers)
    return tuple(indices[-method.num_layers :] if method.position == "last" else indices[: method.num_layers])


def shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that decide: layers that are listed are not counted."""
    idle = ("num_layers", "position") if settings["layers"] is not None else ()
    return {name: value for name, value in settings.items() if name not in idle}


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    """Of the language model what is named; the model's other parts, where they are chosen, as a whole."""
    others = tuple(part for part in method.parts if part != "language")
    found = of_parts(dict(arch.tensors()), others, arch)
    if "language" in method.parts:
        found |= _under(method.extra_modules, of_parts(arch.outside, ("language",), arch))
        for layer in chosen(method, arch):
            own = arch.blocks[layer].tensors
            own = own if method.modules == "all" else _under(method.modules, own)
            whole = {f"{arch.layers_at}.{layer}.{name}": shape for name, shape in own.items()}
            found |= of_parts(whole, ("language",), arch)
    return found


def attaches_to_shares(method: Settings) -> bool:
    """Return whether a rank that holds its share of the weights only can attach the method."""
    return True


def _under(modules: tuple[str, ...], tensors: dict[str, Shape]) -> dict[str, Shape]:
    """The tensors of the modules. A module is named by whole parts of its path: `mlp`, not `ml`."""
    return {name: shape for name, shape in tensors.items() if any(_is_of(name, module) for module in modules)}


def _is_of(tensor: str, module: str) -> bool:
    return f".{module}." in f".{tensor}."


def _layers_exist(case: Case) -> str | tuple[str, str] | None:
    method, count = case.settings.method, case.arch.layers
    if "language" not in method.parts:
        return None
    if method.layers is not None:
        if not method.layers:
            return "method.layers", "the list is empty"
        outside = [layer for layer in method.layers if not 0 <= layer < count]
        return ("method.layers", f"the model has layers 0 to {count - 1}, not {outside[0]}") if outside else None
    return f"the model has {count} layers" if method.num_layers > count else None


def _chosen_twice(case: Case) -> tuple[str, str] | None:
    """The keys' defaults are no contradiction: only what the user asked for is."""
    if case.settings.method.layers is None or "language" not in case.settings.method.parts:
        return None
    for name in ("num_layers", "position"):
        if case.asked(f"method.{name}"):
            return f"method.{name}", "method.layers says already which layers are trained"
    return None


def _modules_exist(case: Case) -> tuple[str, str] | None:
    method, arch = case.settings.method, case.arch
    if "language" not in method.parts:
        return None
    if method.modules == ():
        return "method.modules", "the list is empty"
    layers = [arch.blocks[index].tensors for index in chosen(method, arch) if 0 <= index < arch.layers]
    inside = () if method.modules == "all" else method.modules
    outside = of_parts(arch.outside, ("language",), arch)
    for module in method.extra_modules:
        own = {name for name in arch.outside if _is_of(name, module)}
        if own and own <= set(arch.fixed):
            return "method.extra_modules", f"{module} gets no gradient in this run"
    return _missing("method.modules", "the chosen layers have", inside, {name for own in layers for name in own}) or (
        _missing("method.extra_modules", "outside of the layers there is", method.extra_modules, outside)
    )


def _missing(key_: str, where: str, modules: tuple[str, ...], tensors: Iterable[str]) -> tuple[str, str] | None:
    unknown = [module for module in modules if not any(_is_of(name, module) for name in tensors)]
    if not unknown:
        return None
    paths = [name.removesuffix(".weight").removesuffix(".bias").split(".") for name in tensors]
    known = {".".join(path[start:end]) for path in paths for end in range(len(path) + 1) for start in range(end)}
    return key_, f"{where} no {unknown[0]}; {did_you_mean(unknown[0], known)}".rstrip("; ?")


def _nothing(case: Case) -> str | None:
    """Only where all that is named is there: one mistake is told once."""
    return None if _layers_exist(case) or _modules_exist(case) else nothing_trains(trainable)(case)


RULES = (
    Rule("freeze-layers", _layers_exist),
    Rule("freeze-layers-twice", _chosen_twice),
    Rule("freeze-modules", _modules_exist),
    Rule(
        "keys-of-language",
        of_language(trainable, "num_layers", "position", "layers", "modules", "extra_modules"),
    ),
    Rule("nothing-trains", _nothing),
)
