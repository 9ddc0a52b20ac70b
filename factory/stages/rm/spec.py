"""A reward model: a score for an answer, learned from pairs of them (Ouyang et al. 2022, arXiv 2203.02155, 3.5)."""

from factory.architecture import Architecture, Shape
from factory.config.settings import Metric, Stage
from factory.data.record import Kind
from factory.plan import heads as saved
from factory.plan.files import head_fits
from factory.plan.rule import Case, Rule
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


def _answers_asked(case: Case) -> str | None:
    """Where nobody asks, the plan says that there are none."""
    asked = case.asked("evaluate.samples") and case.settings.evaluate.samples
    return "it trains a score and writes nothing" if asked else None


RULES = (
    Rule("answers-of-a-score", _answers_asked),
    Rule("score-head", head_fits(SCORE)),
)
