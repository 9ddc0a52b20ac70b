"""Runs as MLflow, TensorBoard or Weights & Biases show them: sent by the parent, in a thread, from the run's folder."""
