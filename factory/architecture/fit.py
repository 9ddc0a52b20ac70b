"""Whether a checkpoint's tensors are those of the config.json beside them, in a person's words."""

import re
from collections.abc import Iterable
from typing import Any

from factory.architecture.types import Architecture, Shape


def times(shape: Shape) -> str:
    return " x ".join(f"{number:,}" for number in shape)


def other_shape(name: str, found: Shape, wanted: Shape) -> str:
    return f"{name} is {times(found)} in its file, its config.json says {times(wanted)}"


def places_of(names: Iterable[str], arch: Architecture) -> dict[str, set[int]]:
    """Of each name within a layer the layers that have it."""
    layer = re.compile(re.escape(arch.layers_at) + r"\.(\d+)\.(.+)")
    found: dict[str, set[int]] = {}
    for name in names:
        if inside := layer.match(name):
            found.setdefault(inside[2], set()).add(int(inside[1]))
    return found


def other_layers(places: dict[str, set[int]], arch: Architecture, config: dict[str, Any]) -> str | None:
    layers = max((max(each) for each in places.values()), default=-1) + 1
    more = int(config.get("num_nextn_predict_layers") or 0)  # for predicting further tokens: never read
    if layers and layers not in (arch.layers, arch.layers + more):
        return f"its files have {layers} layers, its config.json says {arch.layers}"
    return None
