"""How a stage counts: rows of a step, sequences of a sample, what its loss is the mean over."""

from factory.config import registry
from factory.plan.plan import Compiled, micro_batches, stage_keys
from factory.stages.loss import Unit


def rows_per_step(plan: Compiled) -> int:
    """Those of an optimizer update, or what a stage says that rolls out: its answers are trained several times."""
    own = registry.hook(registry.spec("stages", plan.settings.stage.name), "rows_per_step")
    return own(stage_keys(plan)) if own else plan.settings.stage.batch_size * micro_batches(plan.settings)


def sequences(plan: Compiled) -> int:
    """That a sample is trained as."""
    return registry.hook(registry.spec("stages", plan.settings.stage.name), "SEQUENCES", 1)


def unit(plan: Compiled) -> Unit:
    """What the loss is the mean over."""
    return registry.hook(registry.spec("stages", plan.settings.stage.name), "UNIT", "tokens")


def samples_answers(plan: Compiled) -> bool:
    """Whether the model's own answers are trained, and not those of the rows."""
    return registry.samples_answers(registry.spec("stages", plan.settings.stage.name))


def compares(plan: Compiled) -> bool:
    """Whether the samples of a micro-batch change each other's loss."""
    own = registry.hook(registry.spec("stages", plan.settings.stage.name), "compares", lambda own: False)
    return own(stage_keys(plan))
