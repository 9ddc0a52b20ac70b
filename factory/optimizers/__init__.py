"""Optimizers by name: `spec` says what their states take (no torch), `run` builds them."""
