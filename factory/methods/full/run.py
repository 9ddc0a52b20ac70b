from typing import Any

from factory.optimizers import adamw as optimizer
from factory.plan import Attach

__all__ = ["attach", "optimizer"]


def attach(model: Any, settings: Any, plan: Attach) -> Any:
    return model.requires_grad_(True)
