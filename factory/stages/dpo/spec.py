"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and its kin: losses of pairs of answers."""

from typing import Any, Literal

from pydantic import Field

from factory.config.settings import Metric, Stage
from factory.data.record import Kind
from factory.plan.rule import Case, rule
from factory.preference import LOSSES
from factory.stages.loss import Unit

Name = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "simpo",
    "cpo",
]


class Settings(Stage):
    loss: Name = Field(description="the preference loss; simpo and cpo need no reference model")
    beta: float | None = Field(
        description="strength of the pull to the reference model (of simpo: scale of the reward); null: what suits "
        "the loss",
        gt=0,
    )
    label_smoothing: float = Field(
        description="the share of pairs that are taken to be labelled the wrong way round", ge=0, le=0.49
    )
    gamma: float | None = Field(
        description="simpo: the margin between the rewards that is aimed at; null: what suits the loss", ge=0
    )
    nll_weight: float | None = Field(
        description="weight of the chosen answers' own loss beside the preference's; null: what suits the loss", ge=0
    )


KIND: Kind = "pairs"
UNIT: Unit = "samples"
SEQUENCES = 2
READS = "answers"
METRICS: tuple[Metric, ...] = ("rewards/accuracy", "rewards/margin")


def resolved(own: dict[str, Any]) -> dict[str, Any]:
    """What is null becomes what the loss's paper has, or most people take."""
    loss = LOSSES[own["loss"]]
    usual = {"beta": loss.beta, "gamma": loss.gamma, "nll_weight": loss.nll}
    return {name: usual.get(name) if value is None else value for name, value in own.items()}


def needs_reference(own: dict[str, Any]) -> bool:
    return LOSSES[own["loss"]].needs_reference


def compares(own: dict[str, Any]) -> bool:
    return LOSSES[own["loss"]].ranks


@rule(
    "label-smoothing",
    keys=("stage.label_smoothing", "stage.loss"),
    reason="some losses are defined for noisy labels alone, others have no place for them",
    fix="set stage.label_smoothing=0.001 for exo_pair (its paper's), 0 for those that read none",
)
def label_smoothing(case: Case) -> str | None:
    stage = case.settings.stage
    reads = LOSSES[stage.loss].smoothing
    if reads == "none" and stage.label_smoothing:
        return f"the loss {stage.loss} reads none"
    return f"the loss {stage.loss} is not defined without" if reads == "must" and not stage.label_smoothing else None


@rule(
    "one-pair-to-rank",
    keys=("stage.loss", "stage.batch_size"),
    reason="the loss sorts the margins of a batch's pairs",
    fix="set stage.batch_size=8, or another stage.loss",
)
def one_pair_to_rank(case: Case) -> str | None:
    stage = case.settings.stage
    return "one pair has no other to be ranked with" if LOSSES[stage.loss].ranks and stage.batch_size == 1 else None
