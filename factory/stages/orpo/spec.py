"""Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691): preference and fine-tuning in one loss."""

from dataclasses import dataclass

from factory.config import schema
from factory.config.typed import key
from factory.data.record import Kind
from factory.stages.loss import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Stage):
    beta: float = key("weight of the odds ratio beside the chosen answers' own loss (the paper's lambda)", above=0)


KIND: Kind = "pairs"
UNIT: Unit = "samples"
SEQUENCES = 2
READS = "answers"
METRICS: tuple[schema.Metric, ...] = ("rewards/accuracy", "rewards/margin")
RULES = ()
