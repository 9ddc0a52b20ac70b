from factory.methods.freeze.spec import trainable
from factory.methods.marking import marks
from factory.optimizers.run import plain as optimizer

__all__ = ["attach", "optimizer"]

attach = marks(trainable)
