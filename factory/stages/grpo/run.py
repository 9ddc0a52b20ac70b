from collections.abc import Iterator
from typing import Any

import torch

from factory import policy
from factory.execute.context import Run
from factory.losses import sampled_log_probs
from factory.plan.plan import stage_keys
from factory.rewards import Reward
from factory.rollouts import roles, turns
from factory.rollouts.rolled import dense, roll
from factory.stages.loss import Loss
from factory.steps.feed import Turn
from factory.steps.kernels import without_dropout
from factory.steps.pack import Dataset

attach, measure = roles.attach, turns.measure


def source(
    run: Run, model: Any, dataset: Dataset, reward: Reward, first: int, last: int, position: dict[str, Any] | None
) -> Iterator[Turn]:
    """A step: `group_size` answers to each of the next prompts, side by side, and the updates that train them."""
    own = stage_keys(run.plan)
    size = own["group_size"]
    for step in range(first, last):
        prompts = turns.asked(run, dataset, step)
        rolled = roll(run, model, dataset, reward, [row for row in prompts for _ in range(size)])
        if step == first:
            turns.check_ratio(run, model, dataset, rolled)
        spread = policy.group_spread(rolled.scores, size)  # of equal scores 0, as their advantages are
        columns = {
            "old": rolled.log_probs,
            "advantages": policy.group_advantages(rolled.scores, size, scale=own["loss"] == "grpo"),
        }
        if rolled.reference is not None:
            columns["reference_log_probs"] = rolled.reference
        watched = {
            "reward_std": float(spread.mean()),
            "groups_alike": float((spread == 0).float().mean()),
            "unscored": 1 - rolled.scored() / len(rolled.answers),
        }
        made = turns.updates(run, dataset, rolled, columns)
        without_dropout(model)  # in all updates of the step
        yield Turn(made, turns.tokens(rolled), None, rolled.watched() | watched)


def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Loss:
    """Summed over the answers."""
    log_probs, _ = sampled_log_probs(model, turns.text(batch), own["temperature"])
    mask, old, advantages = batch["mask"], batch["old"], batch["advantages"]
    new = dense(log_probs, mask)
    losses = policy.grpo_loss(
        new,
        old,
        advantages,
        mask,
        clip=own["clip"],
        reference=batch.get("reference_log_probs"),
        beta=own["beta"],
        length=own["max_new_tokens"] if own["loss"] == "dr_grpo" else None,
    )
    with torch.no_grad():
        held = policy.clipped(new, old, advantages[:, None].expand_as(new), own["clip"]) & mask
    count = int(mask.sum())
    metrics = {
        "clip_fraction": (held.sum(), count),
        "ratio": ((log_probs.detach() - old[mask]).exp().sum(), count),
    }
    return Loss(losses.sum(), metrics)
