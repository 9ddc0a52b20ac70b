from collections.abc import Iterator
from typing import Any

from torch import Tensor

from factory import policy
from factory.execute.context import Run
from factory.losses import sampled_log_probs
from factory.plan import heads
from factory.plan.plan import stage_keys
from factory.rewards import Reward
from factory.rollouts import roles, turns
from factory.rollouts.rolled import Rolled, roll
from factory.stages.loss import Loss
from factory.stages.ppo.spec import VALUE
from factory.steps.feed import Turn
from factory.steps.kernels import without_dropout
from factory.steps.pack import Dataset

attach, measure = roles.attach, turns.measure


def source(
    run: Run, model: Any, dataset: Dataset, reward: Reward, first: int, last: int, position: dict[str, Any] | None
) -> Iterator[Turn]:
    """A step: answers to the next prompts, and the updates that train them. Its position is the KL's cost."""
    own = stage_keys(run.plan)
    coefficient = own["kl_coefficient"] if position is None else position["kl_coefficient"]
    for step in range(first, last):
        rolled = roll(run, model, dataset, reward, turns.asked(run, dataset, step), value=VALUE)
        if step == first:
            turns.check_ratio(run, model, dataset, rolled)
        columns, watched = judged(rolled, own, coefficient)
        watched |= {**rolled.watched(), "kl_coefficient": coefficient}
        coefficient = _next(coefficient, watched, own, len(rolled.answers))
        made = turns.updates(run, dataset, rolled, columns)
        without_dropout(model)  # in all updates of the step
        yield Turn(made, turns.tokens(rolled), {"kl_coefficient": coefficient}, watched)


def judged(rolled: Rolled, own: dict[str, Any], coefficient: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What the loss reads of each token, (n, t) each, and how much of the returns the values told beforehand."""
    assert rolled.values is not None
    reference = rolled.log_probs if rolled.reference is None else rolled.reference
    rewards = policy.token_rewards(rolled.log_probs, reference, rolled.scores, rolled.mask, coefficient)
    if own["whiten_rewards"]:
        rewards = policy.whiten(rewards, rolled.mask, shift=False)
    advantages, returns = policy.gae(rewards, rolled.values, rolled.mask, own["gamma"], own["gae_lambda"])
    there = returns[rolled.mask]
    left, all_of = (there - rolled.values[rolled.mask]).var(unbiased=False), there.var(unbiased=False)
    watched = {"explained_variance": float(1 - left / all_of)} if all_of > 0 else {}
    columns = {
        "old": rolled.log_probs,
        "old_values": rolled.values,
        "advantages": policy.whiten(advantages, rolled.mask),
        "returns": returns,
    }
    return columns, watched


def _next(coefficient: float, watched: dict[str, float], own: dict[str, Any], samples: int) -> float:
    """The KL's cost in the next step."""
    if own["kl_target"] is None:
        return coefficient
    return policy.adapted(
        coefficient, watched["kl"], target=own["kl_target"], horizon=own["kl_horizon"], samples=samples
    )


def loss(model: Any, batch: dict[str, Any], own: dict[str, Any]) -> Loss:
    """Summed over the answers' tokens: the clipped policy's loss, and the clipped value's by its weight."""
    log_probs, states = sampled_log_probs(model, turns.text(batch), own["temperature"], states=True)
    assert states is not None
    values = heads.apply(model, VALUE, states)[:, 0]
    old, old_values, advantages, returns = (
        batch[name][batch["mask"]] for name in ("old", "old_values", "advantages", "returns")
    )
    by_policy = policy.policy_loss(log_probs, old, advantages, own["clip"]).sum()
    by_value = policy.value_loss(values, old_values, returns, own["value_clip"]).sum()
    count = len(log_probs)
    metrics = {
        "policy_loss": (by_policy.detach(), count),
        "value_loss": (by_value.detach(), count),
        "clip_fraction": (policy.clipped(log_probs.detach(), old, advantages, own["clip"]).sum(), count),
        "ratio": ((log_probs.detach() - old).exp().sum(), count),
    }
    return Loss(by_policy + own["value_coefficient"] * by_value, metrics)
