from typing import Any

from factory.architecture import Architecture
from factory.methods.lora.run import any_transposed, go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.vera.spec import Settings
from factory.optimizers.run import plain as optimizer
from factory.plan.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    turned = any_transposed(model, settings, arch)
    dropout, start = settings.dropout, settings.initial
    return wrap(model, settings, plan, arch, vera_dropout=dropout, d_initial=start, fan_in_fan_out=turned)
