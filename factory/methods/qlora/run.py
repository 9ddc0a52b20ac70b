from factory.methods.lora.run import attach, optimizer

__all__ = ["attach", "optimizer"]
