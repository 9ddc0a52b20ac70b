"""Reward: what scores the answers of a stage that samples them, made before the policy's weights are read."""

from typing import Any

from factory.execute.context import Run


def reward(run: Run, tokenizer: Any) -> dict[str, Any]:
    """None where the stage's answers are the data's."""
    if "rollout_batch_size" not in run.plan.steps.train.own:
        return {"reward": None}
    from factory.rewards.source import reward

    return {"reward": reward(run.plan, tokenizer)}
