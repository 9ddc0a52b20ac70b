"""Reward: what scores the answers of a stage that samples them, made before the policy's weights are read."""

from pathlib import Path
from typing import Any

from factory.execute.context import Run
from factory.stages.rows import samples_answers


def reward(run: Run, tokenizer: Any) -> dict[str, Any]:
    """None where the stage's answers are the data's."""
    if not samples_answers(run.plan):
        return {"reward": None}
    from factory.rewards.model import reads_another_form
    from factory.rewards.source import reward

    folder = run.plan.steps.load.reward
    if folder is not None and reads_another_form(Path(folder), tokenizer):
        run.emit(
            "note",
            text="The reward model has learnt from conversations as another chat template has them, and not seen the "
            "form in which it scores answers here. model.template says which one the policy has.",
        )
    return {"reward": reward(run.plan, tokenizer)}
