from factory.methods.lora.run import attach, begin, export, go_on, initialize, optimizer, taken

__all__ = ["attach", "begin", "export", "go_on", "initialize", "optimizer", "taken"]
