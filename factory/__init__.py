"""Factory: fine-tuning as a plan that is compiled, refused or executed."""

__version__ = "0.1.0"
