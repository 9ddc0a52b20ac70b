from typing import Any

from factory.architecture import Architecture
from factory.methods.ia3.spec import Settings
from factory.methods.lora.run import any_transposed, go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.lora.targets import named, targets
from factory.optimizers.run import plain as optimizer
from factory.plan.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    turned = any_transposed(model, settings, arch)
    by_input = list(named(settings.scaled_inputs, targets(settings, arch)))
    return wrap(model, settings, plan, arch, feedforward_modules=by_input, fan_in_fan_out=turned)
