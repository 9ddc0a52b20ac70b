"""How many rows of the data a step of the loop takes."""

from factory import registry
from factory.plan import Train


def rows_per_step(train: Train) -> int:
    """Those of an optimizer update, or what a stage says that rolls out: its answers are trained several times."""
    own = registry.hook(registry.spec("stages", train.stage), "rows_per_step")
    return own(train.own) if own else train.batch_size * train.micro_batches
