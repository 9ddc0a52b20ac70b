"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): answers with a label, one by one."""

from typing import Any

from pydantic import Field

from factory.config.settings import Stage
from factory.data.record import Kind
from factory.plan.rule import Case, Rule
from factory.stages.loss import Unit


class Settings(Stage):
    beta: float = Field(description="strength of the pull to the reference model", gt=0)
    desirable_weight: float = Field(description="what the loss of a wanted answer counts (paper, equation 8)", gt=0)
    undesirable_weight: float = Field(
        description="what the loss of an unwanted answer counts (paper, equation 8)", gt=0
    )


KIND: Kind = "labelled"
UNIT: Unit = "samples"
JUDGED = 1  # a prompt with another answer
READS = "answers"


def needs_reference(own: dict[str, Any]) -> bool:
    return True


def _one_to_mismatch(case: Case) -> str | None:
    return "one prompt has no other's answer" if case.settings.stage.batch_size == 1 else None


def _reference_of_stream(case: Case) -> str | None:
    wrong = "its loss reads the reference's log-probabilities, taken before training"
    return wrong if case.settings.data.streaming else None


def _media(case: Case) -> str | None:
    seen = [name for name, data in case.facts.data.items() if data.media]
    return f"{seen[0]} has {case.facts.data[seen[0]].media[0]}" if seen else None


RULES = (
    Rule("one-to-mismatch", _one_to_mismatch),
    Rule("reference-of-a-stream", _reference_of_stream),
    Rule("mismatched-media", _media),
)
