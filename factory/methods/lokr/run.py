from typing import Any

from factory.architecture import Architecture
from factory.methods.lokr.spec import Settings
from factory.methods.lora.run import go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.lora.targets import targets
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    from peft import LoKrConfig

    config = LoKrConfig(
        r=settings.rank,
        alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whole or not
        target_modules=list(targets(settings, arch)),
        task_type="CAUSAL_LM",
    )
    return wrap(model, config, plan)
