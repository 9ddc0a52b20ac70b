"""Settings: every key's declaration, Hydra composition, tables of models and data sets."""
