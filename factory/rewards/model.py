"""Scores by a reward model: an adapter on the policy's own base, or a model of its own."""

from pathlib import Path
from typing import Any

import torch

from factory.config.refusal import refuse
from factory.plan import heads
from factory.plan.plan import Plan
from factory.rewards import Reward, checked
from factory.rollouts import roles
from factory.stages.rm.run import scores
from factory.steps.walk import model_class

_SAID = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is one."}]


def reads_another_form(folder: Path, tokenizer: Any) -> bool:
    """Whether the template that a reward model was saved with writes a conversation otherwise than the policy's.

    Texts are compared: a template may be spelt in many ways. Of one that was saved without, nobody knows.
    """
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return False
    theirs = file.read_text(encoding="utf-8")
    ours, other = (tokenizer.apply_chat_template(_SAID, chat_template=each, tokenize=False) for each in (None, theirs))
    return ours != other


def by_adapter(folder: Path) -> Reward:
    def reward(model: Any, _answers: Any, _data: Any, batches: list[dict[str, Any]]) -> list[float]:
        with roles.reward(model):
            return _scores(model, batches, folder)

    return reward


def by_model(plan: Plan, tokenizer: Any) -> Reward:
    """Reads the weights in the type of the policy's frozen ones. Raises UserError where its tokens are others."""
    from transformers import AutoConfig, AutoTokenizer

    load = plan.steps.load
    assert load.reward is not None
    folder, trust = Path(load.reward), plan.settings.model.trust_remote_code
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise refuse(
            "reward-tokenizer",
            f"stage.reward_model={load.reward}",
            "its tokenizer has other tokens",
            because="the answers' tokens are what it reads",
            fix="name a reward model with this model's tokenizer",
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    judge: Any = model_class(config).from_pretrained(
        folder, config=config, dtype=getattr(torch, load.dtype), trust_remote_code=trust
    )
    judge = heads.load(judge.to(load.device).requires_grad_(False).eval(), folder)

    def reward(_model: Any, _answers: Any, _data: Any, batches: list[dict[str, Any]]) -> list[float]:
        return _scores(judge, batches, folder)

    return reward


def _scores(judge: Any, batches: list[dict[str, Any]], folder: Path) -> list[float]:
    found = torch.cat([scores(judge, batch) for batch in batches])
    return checked.scores(found, len(found), f"stage.reward_model={folder}")
