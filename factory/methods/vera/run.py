from typing import Any

from factory.architecture import Architecture
from factory.methods.lora.run import any_transposed, go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.lora.targets import targets
from factory.methods.vera.spec import Settings
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    from peft import VeraConfig

    adapted = targets(settings, arch)
    config = VeraConfig(
        r=settings.rank,
        vera_dropout=settings.dropout,
        d_initial=settings.initial,
        projection_prng_key=settings.projection_seed,
        save_projection=True,  # random numbers of another torch are others
        target_modules=list(adapted),
        fan_in_fan_out=any_transposed(model, adapted),
        task_type="CAUSAL_LM",
    )
    return wrap(model, config, plan)
