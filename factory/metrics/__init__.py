"""Metrics of answers against references, and how sure a difference between two runs is. No torch."""
