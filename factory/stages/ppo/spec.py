"""Proximal policy optimization of sampled answers (Schulman et al. 2017, 1707.06347; Ouyang et al. 2022, 2203.02155).

One set of base weights is policy, value, reference and reward model in turn (the paper, section 4.3).
"""

from typing import Any

from pydantic import Field

from factory.architecture import Architecture, Shape
from factory.config.settings import Metric
from factory.data.record import Kind
from factory.plan import heads as saved
from factory.rollouts import spec as rollouts
from factory.stages.loss import Unit

VALUE = "value_head.weight"


class Settings(rollouts.Settings):
    kl_coefficient: float = Field(
        description="what each nat that the policy is from its reference costs, at the start", ge=0
    )
    kl_target: float | None = Field(
        description="nats an answer that the KL's coefficient is steered to (arXiv 1909.08593, section 2.2); null: "
        "it stays",
        gt=0,
    )
    kl_horizon: int = Field(description="answers in which the coefficient may follow: larger is slower", ge=1)
    gamma: float = Field(description="what the next token's reward counts", gt=0, le=1)
    gae_lambda: float = Field(description="of generalized advantages (arXiv 1506.02438, eq. 16)", ge=0, le=1)
    whiten_rewards: bool = Field(description="scale a step's rewards to variance 1")
    value_clip: float = Field(description="how far a new value is followed from the old", gt=0)
    value_coefficient: float = Field(description="weight of the value's loss beside the policy's", gt=0)


KIND: Kind = "messages"
UNIT: Unit = "tokens"
READS = "answers"
MEASURES = "reward, KL and length of answers"
METRICS: tuple[Metric, ...] = ("reward",)
HEADS_START: saved.Start = "zero"  # what is expected before anything was seen
new_tokens, notes = rollouts.new_tokens, rollouts.notes
rollout_bytes, reward_bytes = rollouts.rollout_bytes, rollouts.reward_bytes


def heads(arch: Architecture) -> dict[str, Shape]:
    return {VALUE: (1, saved.width(arch))}


def rows_per_step(own: dict[str, Any]) -> int:
    return own["rollout_batch_size"]


def reads_reference(own: dict[str, Any]) -> bool:
    return own["kl_coefficient"] > 0
