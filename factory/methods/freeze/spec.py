"""Some decoder layers are trained, the rest is frozen (freeze-tuning: Houlsby et al. 2019; the paper, section 3.1)."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.refusal import did_you_mean
from factory.config.settings import Method
from factory.methods.full.spec import optimizer_bytes
from factory.methods.parts import nothing_there, of_parts
from factory.plan.rule import Broken, Case, rule

__all__ = ["Settings", "optimizer_bytes", "shown", "trainable"]


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
        for layer in (index for index in chosen(method, arch) if 0 <= index < arch.layers):
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


@rule(
    "freeze-modules",
    keys=(
        "method.modules",
        "method.extra_modules",
        "method.layers",
        "method.num_layers",
        "method.parts",
        "model.path",
        "stage.name",
    ),
    reason="a name that fits nothing trains nothing, nor does one of what the stage never reads (rm, the head)",
    fix="name modules by whole parts of their paths, or method.modules=all and method.extra_modules=[]",
)
def freeze_modules(case: Case) -> str | Broken | None:
    method, arch = case.settings.method, case.arch
    if "language" not in method.parts:
        return nothing_there(case)
    if (broken := _missing_layers(method, arch.layers)) is not None:
        return broken
    if method.modules == ():
        return "the list is empty"
    outside = of_parts(arch.outside, ("language",), arch)
    for module in method.extra_modules:
        own = {name for name in arch.outside if _is_of(name, module)}
        if own and own <= set(arch.fixed):
            return Broken(key="method.extra_modules", message=f"{module} gets no gradient in this run")
    inside = {name for index in chosen(method, arch) for name in arch.blocks[index].tensors}
    modules = () if method.modules == "all" else method.modules
    if wrong := _missing("the chosen layers have", modules, inside):
        return wrong
    wrong = _missing("outside of the layers there is", method.extra_modules, outside)
    return wrong and Broken(key="method.extra_modules", message=wrong)


def _missing_layers(method: Settings, count: int) -> Broken | None:
    reason, fix = "a layer that is not there cannot be trained", "choose layers that the model has"
    if method.layers is None:
        if method.num_layers <= count:
            return None
        return Broken(key="method.num_layers", message=f"the model has {count} layers", reason=reason, fix=fix)
    outside = [layer for layer in method.layers if not 0 <= layer < count]
    if method.layers and not outside:
        return None
    wrong = f"the model has layers 0 to {count - 1}, not {outside[0]}" if outside else "the list is empty"
    return Broken(key="method.layers", message=wrong, reason=reason, fix=fix)


def _missing(where: str, modules: tuple[str, ...], tensors: Iterable[str]) -> str | None:
    unknown = [module for module in modules if not any(_is_of(name, module) for name in tensors)]
    if not unknown:
        return None
    paths = [name.removesuffix(".weight").removesuffix(".bias").split(".") for name in tensors]
    known = {".".join(path[start:end]) for path in paths for end in range(len(path) + 1) for start in range(end)}
    return f"{where} no {unknown[0]}; {did_you_mean(unknown[0], known)}".rstrip("; ?")
