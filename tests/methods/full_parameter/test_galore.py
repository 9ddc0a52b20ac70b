"""GaLore steps as the paper's algorithm 2, written here again in NumPy and float64."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from low_rank import SHAPES, Adam, gradients

from factory.architecture import architecture
from factory.methods.galore.run import GaLore, optimizer
from factory.methods.galore.spec import optimizer_bytes, projected
from factory.optimizers import low_rank as optimizers

RANK, INTERVAL, SCALE, DECAY = 4, 3, 0.25, 0.1
SETTINGS: Any = SimpleNamespace(
    rank=RANK, update_interval=INTERVAL, scale=SCALE, layerwise=False, max_grad_norm_per_tensor=None
)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_steps_are_algorithm_2(shape: tuple[int, ...], train_plan: Callable[..., Any]) -> None:
    plan = train_plan(weight_decay=DECAY)
    matrix = torch.nn.Parameter(torch.randn(shape))
    stepped = GaLore(SETTINGS, plan, Any, "model.layers.0.q.weight", matrix)  # type: ignore[arg-type]
    weight, adam, rate = matrix.detach().double().numpy(), Adam(), plan.learning_rate
    wide, p = shape[-2] <= shape[-1], np.zeros(0)
    for step, gradient in enumerate(gradients(shape)):
        matrix.grad = gradient.clone()
        stepped.step()
        g = gradient.double().numpy()
        if step % INTERVAL == 0:
            left, _, right = np.linalg.svd(g, full_matrices=False)
            p = left[..., :RANK] if wide else np.swapaxes(right, -1, -2)[..., :RANK]
            theirs = stepped.projector.double().numpy()  # type: ignore[union-attr]
            p = p * np.sign((p * theirs).sum(-2, keepdims=True))  # singular vectors are known up to their signs
            np.testing.assert_allclose(theirs, p, atol=2e-4)
        pt = np.swapaxes(p, -1, -2)
        update = SCALE * (p @ adam(pt @ g) if wide else adam(g @ p) @ pt)
        weight = weight * (1 - rate * DECAY) - rate * update
        np.testing.assert_allclose(matrix.detach().numpy(), weight, atol=1e-5)
    assert matrix.grad is None


def test_projectors_are_drawn_side_by_side(train_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it is alone, and where one was drawn torch has the threads that it had."""
    plan, threads = train_plan(), torch.get_num_threads()
    drawn_by = set[int]()
    draw = GaLore.draw
    monkeypatch.setattr(GaLore, "draw", lambda *given: drawn_by.add(threading.get_ident()) or draw(*given))

    def stepped(together: bool) -> list[torch.Tensor]:
        matrices = [torch.nn.Parameter(torch.ones(shape)) for shape in [*SHAPES.values()] * 2]
        each = [GaLore(SETTINGS, plan, Any, "q", matrix) for matrix in matrices]  # type: ignore[arg-type]
        for matrix in matrices:
            (matrix.grad,) = gradients(tuple(matrix.shape), 1)
        for one in [optimizers.Projected([], list(each))] if together else each:
            one.step()
        return [value for one in each for value in (one.matrix.detach(), one.projector)]  # type: ignore[misc]

    try:
        torch.set_num_threads(1)
        alone = stepped(together=False)
        assert drawn_by == {threading.get_ident()}
        torch.set_num_threads(2)
        drawn_by.clear()
        assert all(map(torch.equal, stepped(together=True), alone))
        assert drawn_by and threading.get_ident() not in drawn_by
        with ThreadPoolExecutor(1) as later:
            assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(threads)


def test_eight_bits_step_almost_as_algorithm_2(train_plan: Callable[..., Any]) -> None:
    """At the projected size the state has more than 4096 elements, so that it is kept in 8 bits."""
    shape, settings = (96, 300), SimpleNamespace(**{**vars(SETTINGS), "rank": 32})
    moved = {}
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(shape))
        stepped = GaLore(settings, train_plan(optimizer=name), Any, "q", matrix)  # type: ignore[arg-type]
        start = matrix.detach().clone()
        for gradient in gradients(shape):
            matrix.grad = gradient.clone()
            stepped.step()
        moved[name] = matrix.detach() - start
        ((state),) = stepped.inner.state.values()
        kinds = {value.dtype for value in state.values() if isinstance(value, torch.Tensor) and value.ndim == 2}
        assert kinds == {torch.uint8 if name == "adamw_8bit" else torch.float32}
    assert 0 < (moved["adamw"] - moved["adamw_8bit"]).norm() < 0.1 * moved["adamw"].norm()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adafactor"])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("qwen3_moe", torch.float32)]
)
def test_the_state_takes_the_planned_bytes(
    kind: str, dtype: torch.dtype, name: str, train_plan: Callable[..., Any]
) -> None:
    import tiny
    from transformers import AutoModelForCausalLM

    config = tiny.config(
        model_type=kind, **({"num_experts": 4, "moe_intermediate_size": 24} if kind != "llama" else {})
    )
    model, arch = AutoModelForCausalLM.from_config(config).to(dtype), architecture(config.to_dict())
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert projected(arch) < shapes.keys()
    assert any(len(shapes[key]) == 3 for key in projected(arch)) == (kind != "llama")
    settings: Any = SimpleNamespace(**{**vars(SETTINGS), "rank": 8})
    made = optimizer(model, settings, train_plan(optimizer=name), arch)
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    made.step()
    assert _held(made.state_dict()) == optimizer_bytes(settings, name, shapes, arch, dtype.itemsize)


def _held(state: Any, name: str = "") -> int:
    if isinstance(state, torch.Tensor):
        return 0 if name in {"step", "qmap1", "qmap2", "RMS"} else state.nbytes
    if isinstance(state, dict):
        return sum(_held(value, key if isinstance(key, str) else name) for key, value in state.items())
    return sum(_held(value, name) for value in state) if isinstance(state, list) else 0
