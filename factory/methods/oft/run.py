from typing import Any

from factory.architecture import Architecture
from factory.methods.lora.run import any_transposed, go_on, wrap
from factory.methods.lora.run import save as export
from factory.methods.lora.targets import targets
from factory.methods.oft.spec import Settings
from factory.optimizers.run import plain as optimizer
from factory.plan import Attach

__all__ = ["attach", "export", "go_on", "optimizer"]


def attach(model: Any, settings: Settings, plan: Attach, arch: Architecture) -> Any:
    from peft import OFTConfig

    adapted = targets(settings, arch)
    config = OFTConfig(
        r=0,  # as many blocks as there are
        oft_block_size=settings.block_size,
        use_cayley_neumann=settings.neumann_terms is not None,
        num_cayley_neumann_terms=settings.neumann_terms or 0,
        target_modules=list(adapted),
        fan_in_fan_out=any_transposed(model, adapted),
        task_type="CAUSAL_LM",
    )
    return wrap(model, config, plan)
