"""Short runs of the stages that sample, on the tiny model."""

from collections.abc import Callable
from typing import Any

Execute = Callable[..., Any]
LETTERS = """
def letters(prompts, completions):
    return [text.count("e") / max(1, len(text)) for text in completions]

def counted(completion_ids, **others):
    return [float(len(set(ids))) for ids in completion_ids]

def alike(completions):
    return [1.0 for _ in completions]

def tenths(completions):
    return [0.1 for _ in completions]

def three(completion_ids, **others):
    return [float(len(set(ids))) if number in (4, 5, 6) else None for number, ids in enumerate(completion_ids)]

def none(completions):
    return [None for _ in completions]
"""
LORA = ("method=lora", "method.rank=4")
SHORT = (
    "stage.max_new_tokens=6",
    "stage.rollout_batch_size=8",
    "stage.batch_size=2",
    "stage.update_epochs=2",
    "stage.learning_rate=1e-2",
    "stage.logging_steps=1",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.save_steps=null",
    "stage.max_steps=3",
    "data.max_samples=20",
    "data.validation_fraction=0.2",
    "evaluate.batch_size=3",
    "precision=fp32",
)
STAGES: dict[str, tuple[str, ...]] = {
    "ppo": ("stage=ppo",),
    "grpo": ("stage=grpo", "stage.group_size=4"),
}
RM = ("stage=rm", "stage.max_steps=4", "stage.batch_size=2", "stage.learning_rate=1e-2", "precision=fp32")
UNLIKE = {"tokens_per_second", "memory", "seconds", "time"}


def repeats(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must repeat bit for bit: all but times and memory."""
    return [{name: value for name, value in line.items() if name not in UNLIKE} for line in metrics]
