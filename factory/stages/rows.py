"""How a stage counts: rows of a step, sequences of a sample, what its loss is the mean over."""

from factory.config import registry
from factory.plan.plan import Train
from factory.stages.loss import Unit


def rows_per_step(train: Train) -> int:
    """Those of an optimizer update, or what a stage says that rolls out: its answers are trained several times."""
    own = registry.hook(registry.spec("stages", train.stage), "rows_per_step")
    return own(train.own) if own else train.batch_size * train.micro_batches


def sequences(train: Train) -> int:
    """That a sample is trained as."""
    return registry.hook(registry.spec("stages", train.stage), "SEQUENCES", 1)


def unit(train: Train) -> Unit:
    """What the loss is the mean over."""
    return registry.hook(registry.spec("stages", train.stage), "UNIT", "tokens")


def samples_answers(train: Train) -> bool:
    """Whether the model's own answers are trained, and not those of the rows."""
    return registry.samples_answers(registry.spec("stages", train.stage))


def compares(train: Train) -> bool:
    """Whether the samples of a micro-batch change each other's loss."""
    own = registry.hook(registry.spec("stages", train.stage), "compares", lambda own: False)
    return own(train.own)
