"""Reward: what scores the answers of a stage that samples them, made before the policy's weights are read."""

from typing import Any

from factory.execute.context import Run
from factory.stages.rows import samples_answers


def reward(run: Run, tokenizer: Any) -> dict[str, Any]:
    """None where the stage's answers are the data's."""
    if not samples_answers(run.plan.steps.train):
        return {"reward": None}
    from factory.rewards.source import reward

    return {"reward": reward(run.plan, tokenizer)}
