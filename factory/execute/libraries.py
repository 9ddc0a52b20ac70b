"""The libraries that a run computes with."""

from factory.config import registry
from factory.optimizers.spec import PACKAGES
from factory.plan.plan import Plan
from factory.quantizers.spec import holding


def import_libraries(plan: Plan) -> None:
    """Import torch and transformers, and PEFT and bitsandbytes where the plan needs them.

    Their time and memory are so those of a step of their own, not of the first step that happens to use them.
    """
    import transformers.modeling_utils  # noqa: F401

    steps = plan.steps
    if steps.load.adapter is not None or registry.hook(registry.spec("methods", plan.settings.method.name), "peft"):
        import peft  # noqa: F401
    quantizers = holding(plan.settings.method.quantization, steps.load.config)
    if "bitsandbytes" in {*quantizers, PACKAGES.get(plan.settings.stage.optimizer)}:
        import bitsandbytes  # noqa: F401
