"""Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691): preference and fine-tuning in one loss."""

from pydantic import Field

from factory.config.settings import Metric, Stage
from factory.data.record import Kind
from factory.stages.loss import Unit


class Settings(Stage):
    beta: float = Field(
        description="weight of the odds ratio beside the chosen answers' own loss (the paper's lambda)", gt=0
    )


KIND: Kind = "pairs"
UNIT: Unit = "samples"
SEQUENCES = 2
READS = "answers"
METRICS: tuple[Metric, ...] = ("rewards/accuracy", "rewards/margin")
