"""A batch of sampled answers and what is known of them before they are trained."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from factory.data import batches
from factory.data.dataset import IGNORED, Example, without_end
from factory.execute.context import Run
from factory.losses import sampled_log_probs
from factory.plan import heads
from factory.plan.plan import stage_keys
from factory.policy import KL, masked_sum
from factory.rewards import Reward
from factory.rollouts import roles
from factory.rollouts.sample import Answer, Sampling, sample
from factory.steps.feed import autocast, collating
from factory.steps.kernels import multiplying_as_trained
from factory.steps.pack import Dataset

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Rolled:
    """n answers of at most t tokens. `mask`, `log_probs`, `reference` and `values` are (n, t), `scores` (n).

    `reference` is None where nothing reads it, `values` where there is no value head. A score is nan where the answer
    has none.
    """

    answers: list[Answer]
    examples: list[Example]
    mask: Tensor
    log_probs: Tensor
    reference: Tensor | None
    values: Tensor | None
    scores: Tensor

    def scored(self) -> int:
        """How many answers have a score."""
        return int((~self.scores.isnan()).sum())

    def kl(self) -> Tensor:
        """KL of the policy to its reference, estimated on each answer, in nats: (n)."""
        assert self.reference is not None
        return KL["k1"](self.log_probs, self.reference).masked_fill(~self.mask, 0).sum(1)

    def watched(self) -> dict[str, float]:
        """What people watch of any stage that samples. No reward where no answer has a score."""
        found = {"reward": self.scores.nanmean()} if self.scored() else {}
        if self.reference is not None:
            found["kl"] = self.kl().mean()
        # the mean surprise at what was drawn from the policy is an estimate of its entropy
        found["entropy"] = -masked_sum(self.log_probs, self.mask) / self.mask.sum()
        found["response_length"] = self.mask.sum(1).float().mean()
        found["ended"] = torch.tensor([answer.ended for answer in self.answers]).float().mean()
        return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def roll(
    run: Run,
    model: Any,
    dataset: Dataset,
    reward: Reward,
    asked: list[Example],
    *,
    value: str | None = None,
    greedy: bool = False,
) -> Rolled:
    """Samples an answer to the prompt of each row, and has it scored. `value` names the value head's tensor.

    The policy's log-probabilities are those of the pass that trains it, not of the one that samples: the cache of keys
    and values rounds otherwise.
    """
    plan, own, size = run.plan.steps, stage_keys(run.plan), run.plan.settings.stage.batch_size
    device = plan.load.device
    model.eval()
    with autocast(run.plan):
        prompts = [row.ids[: row.prompt] for row in asked]
        drawn = Sampling(own["max_new_tokens"], own["temperature"], own["top_p"], own["top_k"], greedy)
        answers = sample(model, prompts, drawn, pad=dataset.pad, stops=dataset.ends.tokens, device=device)
        examples = [as_example(answer) for answer in answers]
        found = [batches.collate(part, dataset.pad, device) for part in parts(examples, size)]
        mask = _mask(answers, device)
        multiplying_as_trained(model)  # from here on: token by token it is several times slower on a CPU
        collate = collating(run, dataset, padding_free=plan.pack.padding_free)
        read = [collate(part) for part in parts(examples, size)]
        log_probs, values = _policy(model, read, own["temperature"], value)
        reference = None
        if roles.reads_reference(run):
            with roles.reference(model):
                reference, _ = _policy(model, read, own["temperature"], None)
        solutions = [without_end(row.ids[row.prompt :], dataset.ends.tokens) for row in asked]
        with run.ended_at_once():
            scores = torch.tensor(reward(model, answers, solutions, found), device=device)
    if own["missing_end_penalty"] is not None:
        unended = torch.tensor([not answer.ended for answer in answers], device=device)
        scores = scores - own["missing_end_penalty"] * unended
    return Rolled(
        answers,
        examples,
        mask,
        dense(log_probs, mask),
        None if reference is None else dense(reference, mask),
        None if values is None else dense(values, mask),
        scores.float(),
    )


def as_example(answer: Answer) -> Example:
    """The conversation with its answer, of which the answer is trained."""
    return Example([*answer.prompt, *answer.ids], [IGNORED] * len(answer.prompt) + answer.ids)


def parts(items: list[Item], size: int) -> Iterable[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def dense(values: Tensor, mask: Tensor) -> Tensor:
    """Numbers of tokens, row by row, at their places: (n, t), 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _mask(answers: list[Answer], device: str) -> Tensor:
    lengths = torch.tensor([len(answer.ids) for answer in answers], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths[:, None]


def _policy(
    model: Any, found: list[dict[str, Tensor]], temperature: float, value: str | None
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and values where there is a head for them: (tokens) each, in float32 at least."""
    log_probs, values = list[Tensor](), list[Tensor]()
    for batch in found:
        each, states = sampled_log_probs(model, batch, temperature, states=value is not None)
        log_probs.append(each)
        if value is not None and states is not None:
            values.append(heads.apply(model, value, states)[:, 0])
    return torch.cat(log_probs), torch.cat(values) if values else None
