"""What an export writes beside or instead of what transformers writes: GGUF, Modelfile, card, hub, registry."""
