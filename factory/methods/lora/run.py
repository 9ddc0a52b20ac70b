from typing import Any

from factory.architecture import architecture
from factory.methods.lora.spec import Settings, targets
from factory.optimizers import adamw as optimizer
from factory.plan import Attach

__all__ = ["attach", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach) -> Any:
    from peft import LoraConfig, get_peft_model

    arch = architecture(model.config.to_dict())
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whole or not
        lora_dropout=settings.dropout,
        target_modules=[
            f"model.layers.{layer}.{name}" for layer in range(arch.layers) for name in targets(settings, arch)
        ],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=plan.dtype == "float32")
