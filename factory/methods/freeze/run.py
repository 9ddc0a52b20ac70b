from typing import Any

from factory.architecture import Architecture
from factory.methods.freeze.spec import Settings, trainable
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    for name in trainable(settings, arch):
        model.get_parameter(name).requires_grad_(True)
    return model
