"""Metrics of answers against references, and how sure a difference between two runs is. No torch."""

ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = ("bleu4", *ROUGE, "exact_match")  # what text.py can measure
