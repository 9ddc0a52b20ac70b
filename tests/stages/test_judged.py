"""The stages that judge answers: every number they log is that of the paper's formula in float64, from full logits.

The losses below are written with NumPy, a sample at a time, from the model's own logits and the rows' own labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from factory.data.batches import micro_batches
from factory.data.dataset import IGNORED, Example, Labelled
from factory.steps.engine import Engine

Execute = Callable[..., Any]
Weights = dict[str, torch.Tensor]
PLAIN = (
    "precision=fp32",
    "method=full",
    "stage.logging_steps=1",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.learning_rate=2e-3",
    "stage.save_steps=null",
    "stage.max_grad_norm=null",
)
# 7 rows are trained and 5 held out
UNEVEN = (
    "data.max_samples=12",
    "data.validation_fraction=0.42",
    "stage.batch_size=2",
    "stage.gradient_accumulation_steps=2",
    "stage.num_epochs=2",
    "evaluate.batch_size=2",
)


# an epoch's micro-batches in its steps, by their size in a full one
SIZES = {2: [[2, 2], [2, 1]], 3: [[3, 3], [1]]}


# --- what the model says of an answer


@dataclass(frozen=True)
class Answer:
    """Its log-probability by the model and by the reference, and its number of tokens."""

    log_prob: float
    reference: float
    tokens: int


class Judge:
    """The model with some weights beside the reference, in float64."""

    def __init__(self, base: Path, weights: Weights | None = None) -> None:
        self._reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
        if weights is not None:
            self._model.load_state_dict({name: value.double() for name, value in weights.items()})

    def answer(self, row: Example) -> Answer:
        tokens = sum(label != IGNORED for label in row.labels[1:])
        return Answer(log_prob(self._model, row), log_prob(self._reference, row), tokens)


def log_prob(model: Any, row: Example) -> float:
    """The sum over the labelled tokens of log softmax(logits before them)[token]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double().numpy()
    total = 0.0
    for at in range(1, len(row.ids)):
        if row.labels[at] != IGNORED:
            before = logits[at - 1]
            highest = before.max()
            total += before[row.labels[at]] - highest - np.log(np.exp(before - highest).sum())
    return float(total)


# --- the papers' losses


def log_sigmoid(value: float) -> float:
    return -float(np.logaddexp(0, -value))


def margin(chosen: Answer, rejected: Answer) -> float:
    return (chosen.log_prob - chosen.reference) - (rejected.log_prob - rejected.reference)


def mean(answer: Answer) -> float:
    return answer.log_prob / answer.tokens


def dpo(chosen: Answer, rejected: Answer, *, beta: float, smoothing: float = 0) -> float:
    logit = beta * margin(chosen, rejected)
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def ipo(chosen: Answer, rejected: Answer, *, beta: float) -> float:
    ratios = [(each.log_prob - each.reference) / each.tokens for each in (chosen, rejected)]
    return (ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2


def hinge(chosen: Answer, rejected: Answer, *, beta: float) -> float:
    return max(0.0, 1 - beta * margin(chosen, rejected))


def simpo(chosen: Answer, rejected: Answer, *, beta: float, gamma: float) -> float:
    return -log_sigmoid(beta * mean(chosen) - beta * mean(rejected) - gamma)


def cpo(chosen: Answer, rejected: Answer, *, beta: float) -> float:
    return -log_sigmoid(beta * (chosen.log_prob - rejected.log_prob)) - mean(chosen)


def orpo(chosen: Answer, rejected: Answer, *, beta: float) -> float:
    odds = [np.exp(mean(each)) / (1 - np.exp(mean(each))) for each in (chosen, rejected)]
    return -mean(chosen) - beta * log_sigmoid(log(odds[0] / odds[1]))


def ratio(answer: Answer) -> float:
    return answer.log_prob - answer.reference


def mean_ratio(answer: Answer) -> float:
    return ratio(answer) / answer.tokens


def total(answer: Answer) -> float:
    return answer.log_prob


@dataclass(frozen=True)
class Pairs:
    """A loss of pairs. `reward`, times beta, is what the loss compares of an answer."""

    overrides: tuple[str, ...]
    loss: Callable[..., float]
    reward: Callable[[Answer], float]
    numbers: dict[str, float]
    start: float | None = None  # the loss where the model is the reference

    def of(self, judge: Judge, micro: Sequence[Any], others: Any, fixed: list[float] | None) -> tuple[list[float], Any]:
        """Each pair's loss, and what is watched as (sum, count)."""
        pairs = [(judge.answer(pair.chosen), judge.answer(pair.rejected)) for pair in micro]
        rewards = [[self.numbers["beta"] * self.reward(each) for each in pair] for pair in pairs]
        watched = {
            "rewards/chosen": sum(chosen for chosen, _ in rewards),
            "rewards/rejected": sum(rejected for _, rejected in rewards),
            "rewards/margin": sum(chosen - rejected for chosen, rejected in rewards),
            "rewards/accuracy": sum(chosen > rejected for chosen, rejected in rewards),
        }
        counted = {name: (value, len(micro)) for name, value in watched.items()}
        return [self.loss(*pair, **self.numbers) for pair in pairs], counted


@dataclass(frozen=True)
class Kto:
    overrides: tuple[str, ...]
    beta: float
    wanted: float
    unwanted: float
    start: float | None = None

    def of(self, judge: Judge, micro: Sequence[Any], others: Any, fixed: list[float] | None) -> tuple[list[float], Any]:
        """`fixed`: the reference points, that carry no gradient, in the order of the micro-batches; else they are
        measured."""
        point = fixed.pop(0) if fixed else self.point(judge, [micro], others)
        losses, rewards = [], {True: [], False: []}
        for sample in micro:
            found = ratio(judge.answer(sample.example))
            rewards[sample.label].append(self.beta * found)
            signed = self.beta * (found - point) * (1 if sample.label else -1)
            weight = self.wanted if sample.label else self.unwanted
            losses.append(weight * (1 - 1 / (1 + np.exp(-signed))))
        watched: dict[str, tuple[float, int]] = {"kl": (point * len(micro), len(micro))}
        for label, name in ((True, "rewards/chosen"), (False, "rewards/rejected")):
            if rewards[label]:
                watched[name] = (sum(rewards[label]), len(rewards[label]))
        return losses, watched

    def point(self, judge: Judge, micros: Sequence[Sequence[Any]], others: Any) -> float:
        """z0: the mean over prompts with the answer to the next one of their micro-batch, cut at 0."""
        rows = [row for micro in micros for row in mismatched_rows(micro, others)]
        return max(0.0, sum(ratio(judge.answer(row)) for row in rows) / len(rows))


def mismatched_rows(micro: Sequence[Labelled], others: Any) -> list[Example]:
    """Prompt i with answer i + 1; of one alone with the first answer to another prompt in the set."""
    found = []
    for number, sample in enumerate(micro):
        asked = sample.example.ids[: sample.prompt]
        if len(micro) > 1:
            other = micro[(number + 1) % len(micro)]
        else:
            each = (others[at] for at in range(len(others)))
            other = next(one for one in each if one.example.ids[: one.prompt] != asked)
        ids, labels = other.example.ids[other.prompt :], other.example.labels[other.prompt :]
        found.append(Example(asked + ids, [IGNORED] * len(asked) + labels))
    return found


CASES: dict[str, Pairs | Kto] = {
    "sigmoid": Pairs(("stage=dpo",), dpo, ratio, {"beta": 0.1}, start=log(2)),
    "smoothed": Pairs(
        ("stage=dpo", "stage.beta=0.3", "stage.label_smoothing=0.2"),
        dpo,
        ratio,
        {"beta": 0.3, "smoothing": 0.2},
        start=log(2),
    ),
    "ipo": Pairs(("stage=dpo", "stage.loss=ipo"), ipo, mean_ratio, {"beta": 0.1}, start=25),
    "hinge": Pairs(("stage=dpo", "stage.loss=hinge"), hinge, ratio, {"beta": 0.1}, start=1),
    "simpo": Pairs(("stage=dpo", "stage.loss=simpo"), simpo, mean, {"beta": 2, "gamma": 1}),
    "cpo": Pairs(("stage=dpo", "stage.loss=cpo"), cpo, total, {"beta": 0.1}),
    "orpo": Pairs(("stage=orpo", "stage.beta=0.5"), orpo, mean, {"beta": 0.5}),
    "kto": Kto(("stage=kto",), 0.1, 1, 1, start=0.5),
    "kto weighted": Kto(
        (
            "stage=kto",
            "stage.beta=0.2",
            "stage.desirable_weight=1.5",
            "stage.undesirable_weight=0.5",
            "stage.batch_size=3",
        ),
        0.2,
        1.5,
        0.5,
    ),
}


# --- what a run did


@dataclass
class Watched:
    """The weights before each step, and its gradients."""

    weights: list[Weights] = field(default_factory=list)
    gradients: list[Weights] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    accumulate, clip = Engine.accumulate, Engine.clip

    def accumulating(engine: Engine, *values: Any) -> Any:
        found.weights.append({name: value.detach().clone() for name, value in engine.model.state_dict().items()})
        return accumulate(engine, *values)

    def clipping(engine: Engine) -> float:
        grads = {name: value.grad.double() for name, value in engine.trained.items() if value.grad is not None}
        found.gradients.append(grads)
        return clip(engine)

    monkeypatch.setattr(Engine, "accumulate", accumulating)
    monkeypatch.setattr(Engine, "clip", clipping)
    return found


def micros_of(done: Any, step: int) -> list[list[Any]]:
    stage, rows = done.run.plan.settings.stage, done.dataset.train
    chosen = micro_batches(
        step, len(rows), stage.batch_size, stage.gradient_accumulation_steps, done.run.plan.settings.seed
    )
    return [[rows[number] for number in micro] for micro in chosen]


def judged(
    case: Pairs | Kto, judge: Judge, micros: list[list[Any]], others: Any, fixed: list[float] | None = None
) -> dict[str, float]:
    """The mean loss over all samples of the micro-batches, and the means of what is watched."""
    losses: list[float] = []
    watched: dict[str, list[tuple[float, int]]] = {}
    for micro in micros:
        found, values = case.of(judge, micro, others, fixed)
        losses += found
        for name, value in values.items():
            watched.setdefault(name, []).append(value)
    means = {name: sum(v for v, _ in values) / sum(n for _, n in values) for name, values in watched.items()}
    return {"loss": sum(losses) / len(losses), **means}


def points(case: Pairs | Kto, judge: Judge, micros: list[list[Any]], others: Any) -> list[float] | None:
    """KTO's reference point, of all micro-batches of a step, once for each."""
    return [case.point(judge, micros, others)] * len(micros) if isinstance(case, Kto) else None


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_papers_formula(name: str, execute: Execute, tiny_model: Path, watched: Watched) -> None:
    """Loss, rewards and gradient, accumulated over uneven micro-batches; and the held-out rows before and after."""
    case = CASES[name]
    done = execute(*PLAIN, *UNEVEN, *case.overrides)
    others = done.dataset.train
    steps = [micros_of(done, step) for step in range(len(done.metrics))]
    size = done.run.plan.settings.stage.batch_size
    assert [[len(micro) for micro in micros] for micros in steps] == SIZES[size] * 2
    for line, micros, weights in zip(done.metrics, steps, watched.weights, strict=True):
        judge = Judge(tiny_model, weights)
        wanted = judged(case, judge, micros, others, points(case, judge, micros, others))
        for key, value in wanted.items():
            assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-4), f"{key} of step {line['step']}"
        unknown = {key for key in line if key.startswith("rewards/") or key == "kl"} - wanted.keys()
        assert not unknown
    if case.start is not None:
        assert done.losses[0] == pytest.approx(case.start, rel=1e-6)
        assert all(abs(loss - case.start) > 1e-3 for loss in done.losses[1:])

    evaluate, rows = done.result["evaluate"], done.dataset.validation
    held = [[rows[at] for at in range(start, min(start + 2, len(rows)))] for start in range(0, len(rows), 2)]
    assert [len(micro) for micro in held] == [2, 2, 1]
    saved = AutoModelForCausalLM.from_pretrained(done.run.folder.model, dtype=torch.float32).state_dict()
    before, after = (judged(case, Judge(tiny_model, weights), held, others) for weights in (None, saved))
    assert evaluate.keys() == {f"{key}_before" for key in before} | after.keys()
    for key, value in ({f"{key}_before": value for key, value in before.items()} | after).items():
        assert evaluate[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_formula(name: str, execute: Execute, tiny_model: Path, watched: Watched) -> None:
    """Along itself the float64 loss rises by its norm, KTO's reference points held where they were."""
    case, step = CASES[name], 1  # not the first: there the model is its own reference
    done = execute(*PLAIN, *UNEVEN, *case.overrides, "stage.max_steps=2", "evaluate.perplexity=false")
    micros, others = micros_of(done, step), done.dataset.train
    weights, gradient = watched.weights[step], watched.gradients[step]
    norm = float(torch.stack([value.square().sum() for value in gradient.values()]).sum().sqrt())
    assert done.metrics[step]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    fixed = points(case, Judge(tiny_model, weights), micros, others)
    far, losses = 1e-5, []
    for sign in (1, -1):
        moved = {key: value.double() + sign * far * gradient[key] / norm for key, value in weights.items()}
        losses.append(judged(case, Judge(tiny_model, moved), micros, others, list(fixed) if fixed else None)["loss"])
    assert (losses[0] - losses[1]) / (2 * far) == pytest.approx(norm, rel=1e-3)
