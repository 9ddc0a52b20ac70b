from factory.methods.lora.run import go_on
from factory.methods.lora.run import save as export
from factory.methods.lora.run import wrap as attach
from factory.optimizers.run import plain as optimizer

__all__ = ["attach", "export", "go_on", "optimizer"]
