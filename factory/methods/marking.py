"""What methods that train the model's own weights share: how these are marked."""

from collections.abc import Callable
from typing import Any

from factory.architecture import Architecture, Shape
from factory.plan.plan import Attach


def marks(
    trainable: Callable[[Any, Architecture], dict[str, Shape]],
) -> Callable[[Any, Any, Attach, Architecture], Any]:
    """An `attach` that lets the tensors of a spec's `trainable` require a gradient."""

    def attach(model: Any, settings: Any, plan: Attach, arch: Architecture) -> Any:
        for name in trainable(settings, arch):
            model.get_parameter(name).requires_grad_(True)
        return model

    return attach
