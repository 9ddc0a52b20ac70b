from factory.losses import causal_lm as loss

__all__ = ["loss"]
