from typing import Any

from factory.architecture import Architecture
from factory.methods.full.spec import Settings, trainable
from factory.methods.marking import marks
from factory.optimizers.run import build, plain, trained
from factory.optimizers.several import Layerwise
from factory.plan.plan import Compiled

__all__ = ["attach", "optimizer"]

attach = marks(trainable)


def optimizer(model: Any, settings: Settings, plan: Compiled, arch: Architecture) -> Any:
    if not settings.layerwise:
        return plain(model, settings, plan, arch)
    each = {name: build({name: value}, plan.settings.stage, arch) for name, value in trained(model).items()}
    return Layerwise(each, settings.max_grad_norm_per_tensor)
