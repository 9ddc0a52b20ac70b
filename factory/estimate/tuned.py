"""What trains of a model, as its method and its stage say: what every estimate follows from."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import ModuleType
from typing import Any

from factory.architecture import Architecture, Shape
from factory.config import registry
from factory.config.settings import Settings
from factory.plan import heads
from factory.plan.plan import BYTES, Steps


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """`spec` is the method's module, `method` its settings."""

    arch: Architecture
    spec: ModuleType
    method: Any
    settings: Settings
    steps: Steps

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of what the method trains."""
        return self.spec.trainable(self.method, self.arch)

    @cached_property
    def heads(self) -> dict[str, Shape]:
        """Of what the stage trains beside it."""
        return heads.heads(self.settings.stage.name, self.arch)

    @cached_property
    def everything(self) -> dict[str, Shape]:
        return self.shapes | self.heads

    @cached_property
    def expanded(self) -> Architecture:
        """With the layers that the method adds."""
        expand = registry.hook(self.spec, "expanded")
        return expand(self.method, self.arch) if expand else self.arch

    @property
    def number(self) -> int:
        """Bytes of a number that is trained."""
        return BYTES[self.steps.attach.dtype]

    @property
    def in_turns(self) -> bool:
        """What trains is held in the frozen type, and stepped as copies of a part at a time."""
        return registry.hook(self.spec, "copied") is not None

    @property
    def layerwise(self) -> bool:
        """Each gradient is stepped at once, and none stays."""
        return bool(getattr(self.method, "layerwise", False))

    @property
    def accumulates(self) -> bool:
        return self.settings.stage.gradient_accumulation_steps > 1 and not self.layerwise

    @cached_property
    def kept(self) -> dict[str, int]:
        """Bytes of what becomes of a gradient as soon as it is whole, by tensor; the others stay as they are."""
        own = registry.hook(self.spec, "kept")
        return own(self.method, self.shapes, self.arch, self) if own else {}

    @property
    def largest(self) -> int:
        """Numbers of the largest tensor that trains."""
        return max((prod(shape) for shape in self.everything.values()), default=0)
