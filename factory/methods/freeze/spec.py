"""Some decoder layers are trained, the rest is frozen (freeze-tuning: Houlsby et al. 2019; the paper, section 3.1)."""

from dataclasses import dataclass
from typing import Literal

from factory import schema
from factory.architecture import Architecture, Shape
from factory.compile.rule import Case, Rule
from factory.methods.full.spec import optimizer_elements
from factory.typed import key

__all__ = ["RULES", "Settings", "optimizer_elements", "trainable"]

QUANTIZABLE = False  # whether it trains beside a base that stays quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Method):
    num_layers: int = key("how many decoder layers to train", low=1)
    position: Literal["last", "first"] = key("which end of the model they are counted from")
    layers: tuple[int, ...] | None = key("train just these decoder layers (from 0) instead")


def chosen(method: Settings, arch: Architecture) -> tuple[int, ...]:
    if method.layers is not None:
        return tuple(sorted(set(method.layers)))
    indices = range(arch.layers)
    return tuple(indices[-method.num_layers :] if method.position == "last" else indices[: method.num_layers])


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in chosen(method, arch)
        for name, shape in arch.layer_tensors.items()
    }


def _layers_exist(case: Case) -> str | None:
    method, count = case.settings.method, case.arch.layers
    if method.layers is not None:
        if not method.layers:
            return "the list is empty"
        outside = [layer for layer in method.layers if not 0 <= layer < count]
        return f"the model has layers 0 to {count - 1}, not {outside[0]}" if outside else None
    return f"the model has {count} layers" if method.num_layers > count else None


RULES = (Rule("freeze-layers", _layers_exist),)
