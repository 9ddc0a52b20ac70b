"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300): a prompt's answers against each other."""

from typing import Any, Literal

from pydantic import Field

from factory.config.settings import Metric
from factory.data.record import Kind
from factory.plan.rule import Case, rule
from factory.rollouts import spec as rollouts
from factory.stages.loss import Unit


class Settings(rollouts.Settings):
    loss: Literal["grpo", "dr_grpo"] = Field(
        description="grpo: the mean over an answer's tokens, advantages over the group's standard deviation; "
        "dr_grpo (arXiv 2503.20783): neither"
    )
    group_size: int = Field(description="answers to the same prompt, which are judged against each other", ge=2)
    beta: float = Field(description="weight of the KL to the reference in the loss", ge=0)


KIND: Kind = "messages"
UNIT: Unit = "samples"
READS = "answers"
UNSCORED = True
MEASURES = "reward, KL and length of answers"
METRICS: tuple[Metric, ...] = ("reward",)
new_tokens, notes = rollouts.new_tokens, rollouts.notes
rollout_bytes, reward_bytes = rollouts.rollout_bytes, rollouts.reward_bytes


def rows_per_step(own: dict[str, Any]) -> int:
    return own["rollout_batch_size"] // own["group_size"]


def reads_reference(own: dict[str, Any]) -> bool:
    return own["beta"] > 0


@rule(
    "rollout-groups",
    keys=("stage.rollout_batch_size", "stage.group_size"),
    reason="the answers to a prompt are sampled, and judged, in one step",
    fix="set it to a multiple of stage.group_size",
)
def rollout_groups(case: Case) -> str | None:
    stage = case.settings.stage
    return (
        None if stage.rollout_batch_size % stage.group_size == 0 else f"groups of {stage.group_size} do not divide it"
    )
