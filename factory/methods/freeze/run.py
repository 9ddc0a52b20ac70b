from typing import Any

from factory.architecture import architecture
from factory.methods.freeze.spec import Settings, trainable
from factory.optimizers import adamw as optimizer
from factory.plan import Attach

__all__ = ["attach", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach) -> Any:
    for name in trainable(settings, architecture(model.config.to_dict())):
        model.get_parameter(name).requires_grad_(True)
    return model
