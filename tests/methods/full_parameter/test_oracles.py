"""Steps are those of the authors' packages galore-torch and badam, in what these do as their papers say.

Where a test goes around a deviation of a package it says so; docs/decisions/0007 lists them.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from math import sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from low_rank import SHAPES, gradients
from torch import Tensor
from transformers import AutoModelForCausalLM

from factory.methods.badam import run as badam
from factory.methods.badam_ratio import run as badam_ratio
from factory.methods.galore.run import GaLore
from factory.steps.walk import walk

RATE, PERIOD = 1e-2, 3
TRANSPOSED = ("square",)  # of a square matrix galore-torch projects the other side


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name}, the oracle, is not installed: pip install '.[dev]'")


def corrected_epsilon(step: int) -> float:
    """Adam's 1e-8 for a package that adds it before the second moment's bias is corrected. Steps count from 1."""
    return 1e-8 * sqrt(1 - 0.999**step)


def galore_apart(
    shape: str, plan: Any, *, size: float = 1.0, steps: int = 7, epsilon: Callable[[int], float] | None = None
) -> float:
    """The largest difference of an element between ours and galore-torch's, at any step.

    `size` is that of the gradient's elements, and `epsilon` is given to the package for each step.
    """
    galore_torch = package("galore_torch")
    torch.manual_seed(0)
    start = torch.randn(SHAPES[shape])

    def turned(value: Tensor) -> Tensor:
        return value.mT.clone() if shape in TRANSPOSED else value.clone()

    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(turned(start))
    settings: Any = SimpleNamespace(rank=4, update_interval=PERIOD, scale=0.25)
    mine = GaLore(settings, plan, Any, {"q": ours})  # type: ignore[arg-type]
    group = {"params": [theirs], "rank": 4, "update_proj_gap": PERIOD, "scale": 0.25, "proj_type": "std"}
    oracle = galore_torch.GaLoreAdamW(
        [group], lr=plan.settings.stage.learning_rate, weight_decay=0.0, no_deprecation_warning=True
    )
    apart: list[float] = []
    for step, gradient in enumerate(gradients(SHAPES[shape], steps), 1):
        if epsilon is not None:
            oracle.param_groups[0]["eps"] = epsilon(step)
        ours.grad, theirs.grad = gradient * size, turned(gradient) * size
        mine.step()
        oracle.step()
        apart.append((ours - turned(theirs)).abs().max().item())
    assert (ours - start).abs().mean() > 0.1 * RATE
    return max(apart)


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_galore_steps_as_the_package(shape: str, train_plan: Callable[..., Any]) -> None:
    """As it comes, over two refreshes: its epsilon of 1e-6 is nothing beside gradients of about 1."""
    assert galore_apart(shape, train_plan(learning_rate=RATE)) < 1e-2 * RATE


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize(("shape", "steps"), [("wide", 7), ("tall", 7), ("square", PERIOD)])
def test_galore_differs_by_epsilon_only(shape: str, steps: int, size: float, train_plan: Callable[..., Any]) -> None:
    """Of the transposed matrix until the first refresh: then the moments meet singular vectors of other signs."""
    plan = train_plan(learning_rate=RATE)
    assert galore_apart(shape, plan, size=size, steps=steps, epsilon=corrected_epsilon) < 1e-4 * RATE


def model_and_batches(steps: int) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny.config())
    return model, [torch.randint(0, 512, (2, 20)) for _ in range(steps)]


def train(model: Any, batches: list[Tensor], optimizer: Any, before: Callable[[], Any]) -> Iterator[set[str]]:
    """Steps one at a time; gives the names of what had a gradient in it."""
    for ids in batches:
        before()
        model(input_ids=ids, labels=ids).loss.backward()
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        optimizer.step()
        model.zero_grad()
        optimizer.zero_grad()
        yield trained


@pytest.mark.filterwarnings("ignore:BAdam expect")
@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("outside", [False, True], ids=["layers", "everything"])
def test_badam_trains_as_the_package(outside: bool, order: str, train_plan: Callable[..., Any]) -> None:
    """Bit by bit, two rounds and a period. The package's first period lacks a step, so ours starts at its second."""
    oracle = package("badam")
    blocks = 4 if outside else 2
    theirs, batches = model_and_batches((2 * blocks + 1) * PERIOD - 1)
    ours, arch = deepcopy(theirs).requires_grad_(False), walk(theirs)
    wrapped = oracle.BlockOptimizer(
        torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=0.0, fused=True),
        list(theirs.named_parameters()),
        switch_block_every=PERIOD,
        switch_mode=order,
        include_embedding=outside,
        include_lm_head=outside,
    )
    values = {"switch_interval": PERIOD, "order": order, "embedding": outside, "head": outside}
    settings: Any = SimpleNamespace(**values, parts=("language",))
    badam.attach(ours, settings, Any, arch)  # type: ignore[arg-type]
    mine, steps = badam.optimizer(ours, settings, train_plan(learning_rate=RATE), arch), count(1)
    trained: list[set[str]] = []
    both = zip(
        train(theirs, batches, wrapped, lambda: None),
        train(ours, batches, mine, lambda: badam.begin_step(mine, settings, next(steps), 0)),
        strict=True,
    )
    for wanted, found in both:
        trained.append(found)
        assert found == wanted, f"step {len(trained)}"
        for name, value in theirs.named_parameters():
            assert torch.equal(ours.get_parameter(name), value), f"step {len(trained)}: {name}"
    assert len({frozenset(names) for names in trained}) == blocks


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_badam_ratio_trains_as_the_package(train_plan: Callable[..., Any]) -> None:
    """Elements beside each other, four turns: to the tensors' end and over it.

    Vectors are frozen: the package adds 1e-9 to the gradients of the small. It has Adam's epsilon, uncorrected.
    """
    oracle = package("badam")
    theirs, batches = model_and_batches(4 * PERIOD)
    for value in theirs.parameters():
        value.requires_grad_(value.ndim == 2)
    ours, start = deepcopy(theirs), deepcopy(theirs)
    ratio = oracle.BlockOptimizerRatio(
        [{"params": list(theirs.parameters())}],
        list(theirs.named_parameters()),
        update_ratio=0.3,
        switch_every=PERIOD,
        lr=RATE,
        include_embedding=True,
        include_lm_head=True,
    )
    settings: Any = SimpleNamespace(switch_interval=PERIOD, ratio=0.3, mask="adjacent")
    mine = badam_ratio.optimizer(ours, settings, train_plan(learning_rate=RATE), walk(ours))
    steps, own = count(), count()

    def correct() -> None:
        ratio.param_groups[0]["eps"] = corrected_epsilon(next(steps) % PERIOD + 1)

    both = zip(
        train(theirs, batches, ratio, correct),
        train(ours, batches, mine, lambda: badam_ratio.begin_step(mine, settings, next(own), 0)),
        strict=True,
    )
    for found, wanted in both:
        assert found == wanted
        for name, value in theirs.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), value, rtol=0, atol=2e-3 * RATE, msg=name)
    for name, value in ours.named_parameters():
        moved = (value - start.get_parameter(name)).abs().max()
        assert moved > RATE if value.requires_grad else moved == 0, name
