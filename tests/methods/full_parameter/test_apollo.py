"""APOLLO steps as the paper's algorithm 1, written here again in NumPy and float64."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from low_rank import SHAPES, Adam, gradients

from factory.methods.apollo.run import Apollo

INTERVAL, SCALE, DECAY, LIMIT = 3, 0.5, 0.1, 1.01


def settings(**changes: Any) -> Any:
    values = {"rank": 4, "update_interval": INTERVAL, "scale": SCALE, "scaling": "channel", "growth_limit": LIMIT}
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_steps_are_algorithm_1(shape: tuple[int, ...], scaling: str, train_plan: Callable[..., Any]) -> None:
    plan = train_plan(weight_decay=DECAY)
    matrix = torch.nn.Parameter(torch.randn(shape))
    stepped = Apollo(settings(scaling=scaling), plan, Any, {"q": matrix})  # type: ignore[arg-type]
    weight, adam, rate, last, limited = (
        matrix.detach().double().numpy(),
        Adam(),
        plan.settings.stage.learning_rate,
        None,
        0,
    )
    wide = shape[-2] <= shape[-1]
    projectors = []
    for step, gradient in enumerate(gradients(shape)):
        gradient = gradient * (-1 if step == 1 else 1)  # the momentum falls, and grows again faster than is allowed
        matrix.grad = gradient.clone()
        stepped.step()
        g = gradient.double().numpy()
        p = stepped.projectors["q"].double().numpy()
        projectors.append(p)
        low = np.swapaxes(p, -1, -2) @ g if wide else g @ p
        normalized = adam(low)
        over = (-2, -1) if scaling == "tensor" else (-2 if wide else -1)
        share = np.sqrt((normalized**2).sum(over, keepdims=True) / (low**2).sum(over, keepdims=True))
        update = SCALE * share * g
        norm = np.sqrt((update**2).sum())
        if last is not None and norm > LIMIT * last:
            update, norm, limited = update * LIMIT * last / norm, LIMIT * last, limited + 1
        last = norm
        weight = weight * (1 - rate * DECAY) - rate * update
        np.testing.assert_allclose(matrix.detach().numpy(), weight, atol=1e-5)
    assert 0 < limited < len(projectors)
    drawn = [step for step in range(1, 7) if not np.array_equal(projectors[step], projectors[step - 1])]
    assert drawn == [3, 6]


def test_the_projection_keeps_norms_on_average(train_plan: Callable[..., Any]) -> None:
    """Entries are normal of variance 1 / rank, so the projected norm is the norm (the paper, theorem 4.1)."""
    rank, side = 50, 400
    matrix = torch.nn.Parameter(torch.zeros(side, 600))
    stepped = Apollo(settings(rank=rank), train_plan(), Any, {"q": matrix})  # type: ignore[arg-type]
    torch.manual_seed(0)
    projector = stepped.draw(matrix.detach())
    assert projector.shape == (side, rank)
    assert abs(projector.mean()) < 0.01
    assert projector.var().item() * rank == pytest.approx(1, abs=0.05)
    stepped.projectors["q"] = projector
    matrix.grad = gradient = torch.randn(side, 600)
    stepped.take(["q"])
    assert stepped.low["q"].norm().item() == pytest.approx(gradient.norm().item(), rel=0.05)


def test_a_channel_without_a_gradient_stays(train_plan: Callable[..., Any]) -> None:
    matrix = torch.nn.Parameter(torch.ones(8, 10))
    stepped = Apollo(settings(), train_plan(), Any, {"q": matrix})  # type: ignore[arg-type]
    matrix.grad = torch.randn(8, 10)
    matrix.grad[:, 3] = 0
    stepped.step()
    assert torch.equal(matrix[:, 3], torch.ones(8))
    assert matrix.isfinite().all() and (matrix[:, 4] != 1).all()
