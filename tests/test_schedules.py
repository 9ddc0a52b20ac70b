"""The learning rate by step: transformers' schedules of the same names, the rise one step on."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from transformers import get_scheduler

from factory.schedules import DECAYS, factor

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def _theirs(name: str, total: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(NAMES[name], optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(total + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_all_are_compared() -> None:
    assert DECAYS.keys() == NAMES.keys()


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize(("total", "ratio", "warmup"), [(40, 0.1, 4), (40, 0.0, 0), (33, 0.1, 4)])
def test_equals_transformers_one_step_on(name: str, total: int, ratio: float, warmup: int) -> None:
    mine = [factor(name, step, total, ratio) for step in range(total)]
    theirs = _theirs(name, total, warmup)
    assert mine[:warmup] == pytest.approx(theirs[1 : warmup + 1])  # the rise: one step on
    assert mine[warmup:] == pytest.approx(theirs[warmup:total])  # the decay begins at the peak
    assert all(value > 0 for value in mine)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_rises_to_the_peak_and_ends(name: str) -> None:
    values = [factor(name, step, 100, 0.1) for step in range(100)]
    assert values[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(values) == 1.0 == values[10]
    assert all(later <= earlier for earlier, later in pairwise(values[10:]))
    last = {"constant": 1.0, "linear": 1 / 90, "cosine": 0.5 * (1 + cos(pi * 89 / 90))}
    assert values[-1] == pytest.approx(last[name])


def test_all_warm_up() -> None:
    assert [factor("cosine", step, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor("linear", 0, 1, 0.05) == 1.0
