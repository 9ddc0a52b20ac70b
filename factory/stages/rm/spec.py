"""A reward model: a score for an answer, learned from pairs of them (Ouyang et al. 2022, arXiv 2203.02155, 3.5)."""

from factory.architecture import Architecture, Shape
from factory.config.settings import Metric, Stage
from factory.data.record import Kind
from factory.plan import heads as saved
from factory.stages.loss import Unit

SCORE = "score_head.weight"


class Settings(Stage):
    pass


KIND: Kind = "pairs"
UNIT: Unit = "samples"
SEQUENCES = 2
READS = "states"
METRICS: tuple[Metric, ...] = ("rewards/accuracy", "rewards/margin")
WRITES = False


def heads(arch: Architecture) -> dict[str, Shape]:
    return {SCORE: (1, saved.width(arch))}
