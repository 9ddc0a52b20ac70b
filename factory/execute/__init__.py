"""The child: walks a plan step by step. Torch is imported inside the steps that need it."""
