"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): answers with a label, one by one."""

from typing import Any

from pydantic import Field

from factory.config.settings import Stage
from factory.data.record import Kind
from factory.plan.rule import Case, rule
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


@rule(
    "one-to-mismatch",
    keys=("stage.batch_size",),
    reason="the distance to the reference is measured on each prompt with the answer to another (paper, section 4.1)",
    fix="set stage.batch_size=8, and stage.gradient_accumulation_steps for a larger step",
)
def one_to_mismatch(case: Case) -> str | None:
    return "one prompt has no other's answer" if case.settings.stage.batch_size == 1 else None
