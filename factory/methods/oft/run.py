from factory.methods.loha.run import attach, export, go_on, optimizer

__all__ = ["attach", "export", "go_on", "optimizer"]
