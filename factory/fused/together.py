"""Layers of a module that read the same tensor: the first that is called makes what all of them make of it."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor


class Together:
    """What was made of a tensor waits here for those layers that are not called yet."""

    def __init__(self, layers: Sequence[Any] = ()) -> None:
        self._layers = layers
        self._x: tuple[Tensor, int] | None = None  # with its version: in place it may become another
        self._waiting = dict[Any, Tensor]()

    def take(self, layer: Any, x: Tensor) -> Tensor | None:
        """What was made of `x` for the layer, once. Layers that leave what waits for them go apart for good."""
        if self._waiting and not self._is(x):
            self._layers, self._waiting = (), {}
        made = self._waiting.pop(layer, None)
        self._x = self._x if self._waiting else None
        return made

    def others(self, layer: Any) -> list[Any]:
        return [each for each in self._layers if each is not layer]

    def leave(self, x: Tensor, made: dict[Any, Tensor]) -> None:
        self._x, self._waiting = (x, x._version) if made else None, made

    def _is(self, x: Tensor) -> bool:
        return self._x is not None and self._x[0] is x and self._x[1] == x._version


def join(model: Any, wanted: Callable[[Any], bool]) -> None:
    """Each of the layers that are `wanted` has a `together`: itself, and those that its module calls with the same."""
    read = dict[tuple[Any, ...], list[str]]()
    for module in model.modules():
        layers = {name: child for name, child in module.named_children() if wanted(child)}
        for layer in layers.values():
            layer.together = Together()
        asked = type(module), *layers
        if len(layers) > 1 and asked not in read:
            read[asked] = _reading_what_comes_in(module, layers)
        joined = Together(same := [layers[name] for name in read.get(asked, ())])
        for layer in same if len(same) > 1 else ():
            layer.together = joined


def copied_alone(layer: Any) -> Any:
    """A copy of a layer that is joined with no other: theirs would be copied with it, and made with its own."""
    joined = getattr(layer, "together", None)
    return copy.deepcopy(layer, {id(joined): Together()} if joined is not None else None)


def _reading_what_comes_in(module: Any, names: Iterable[str]) -> list[str]:
    """Which of its layers a module's forward calls with its own input: asked of its class, with nothing to compute."""
    x, read, own = torch.zeros(1, 1, 1), list[str](), _Anything()

    def noted(name: str) -> Callable[..., _Anything]:
        def call(*given: Any, **named: Any) -> _Anything:
            if len(given) == 1 and given[0] is x and not named:
                read.append(name)
            return _Anything()

        return call

    vars(own).update({name: noted(name) for name in names})
    _, *more = signature(type(module).forward).parameters.values()
    asked = [each.name for each in more[1:] if each.default is Parameter.empty and each.kind in _NAMED]
    with suppress(Exception):  # of any kind: it wants to compute something
        type(module).forward(own, x, **{name: _Anything() for name in asked})
    return list(dict.fromkeys(read))


_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class _Anything:
    """Whatever a forward asks for: its attributes and items are more of it, and so is what it gives."""

    __iter__ = None  # by its items it would never end
    _attn_implementation = "eager"  # of a name that says yes to everything transformers would warn

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, _: Any) -> "_Anything":
        return _Anything()

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return _Anything()
