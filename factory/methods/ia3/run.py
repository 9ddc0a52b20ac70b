from typing import Any

from factory.architecture import Architecture
from factory.methods.ia3.spec import Settings
from factory.methods.lora.run import any_transposed, go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.lora.targets import named, targets
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    from peft import IA3Config

    adapted = targets(settings, arch)
    config = IA3Config(
        target_modules=list(adapted),
        feedforward_modules=list(named(settings.scaled_inputs, adapted)),
        fan_in_fan_out=any_transposed(model, adapted),
        task_type="CAUSAL_LM",
    )
    return wrap(model, config, plan)
