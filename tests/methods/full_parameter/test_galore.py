"""GaLore steps as the paper's algorithm 2, written here again in NumPy and float64."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from low_rank import SHAPES, Adam, gradients
from reads import Reads

from factory.architecture import architecture
from factory.methods.apollo.run import Apollo
from factory.methods.galore.run import GaLore, optimizer
from factory.methods.galore.spec import kept, optimizer_bytes, projected
from factory.optimizers import low_rank as optimizers
from factory.optimizers.several import Hooked, Several

RANK, INTERVAL, SCALE, DECAY = 4, 3, 0.25, 0.1
SETTINGS: Any = SimpleNamespace(
    rank=RANK, update_interval=INTERVAL, scale=SCALE, layerwise=False, max_grad_norm_per_tensor=None
)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_steps_are_algorithm_2(shape: tuple[int, ...], train_plan: Callable[..., Any]) -> None:
    plan = train_plan(weight_decay=DECAY)
    matrix = torch.nn.Parameter(torch.randn(shape))
    stepped = GaLore(SETTINGS, plan, Any, {"q": matrix})  # type: ignore[arg-type]
    weight, adam, rate = matrix.detach().double().numpy(), Adam(), plan.settings.stage.learning_rate
    wide, p = shape[-2] <= shape[-1], np.zeros(0)
    for step, gradient in enumerate(gradients(shape)):
        matrix.grad = gradient.clone()
        stepped.step()
        g = gradient.double().numpy()
        if step % INTERVAL == 0:
            left, _, right = np.linalg.svd(g, full_matrices=False)
            p = left[..., :RANK] if wide else np.swapaxes(right, -1, -2)[..., :RANK]
            theirs = stepped.projectors["q"].double().numpy()
            p = p * np.sign((p * theirs).sum(-2, keepdims=True))  # singular vectors are known up to their signs
            np.testing.assert_allclose(theirs, p, atol=2e-4)
        pt = np.swapaxes(p, -1, -2)
        update = SCALE * (p @ adam(pt @ g) if wide else adam(g @ p) @ pt)
        weight = weight * (1 - rate * DECAY) - rate * update
        np.testing.assert_allclose(matrix.detach().numpy(), weight, atol=1e-5)
    assert matrix.grad is None


def _stepped(stepped: GaLore, *given: torch.Tensor) -> None:
    for gradient in given:
        stepped.matrices["q"].grad = gradient.clone()
        stepped.step()


def _own(projector: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether it spans what the gradient's first singular vectors do."""
    first = torch.linalg.svd(gradient, full_matrices=False)[0][..., :RANK]
    return torch.allclose(projector @ projector.mT, first @ first.mT, atol=1e-4)


def test_zeros_draw_no_projector(train_plan: Callable[..., Any]) -> None:
    """The old one stays; where there is none, the first gradient that is not zero draws it, after a resume too."""
    shape = (6, 10)
    zero, (one, two, three) = torch.zeros(shape), gradients(shape, 3)

    def made() -> GaLore:
        return GaLore(SETTINGS, train_plan(), Any, {"q": torch.nn.Parameter(torch.ones(shape))})  # type: ignore[arg-type]

    stepped = made()
    _stepped(stepped, zero, zero)
    assert stepped.matrices["q"].eq(1).all() and stepped.steps["q"] == 2
    again = made()
    again.load_state_dict(deepcopy(stepped.state_dict()))
    for each in (stepped, again):
        _stepped(each, one)
        assert _own(each.projectors["q"], one)
        _stepped(each, zero)  # the next turn
        assert _own(each.projectors["q"], one)
        _stepped(each, two)  # which is over
        assert _own(each.projectors["q"], one)
        _stepped(each, zero, three)
        assert each.steps["q"] == 2 * INTERVAL + 1 and _own(each.projectors["q"], three)
    assert torch.equal(stepped.matrices["q"], again.matrices["q"])


def test_an_expert_without_a_gradient_draws_no_projector(train_plan: Callable[..., Any]) -> None:
    """Of a stack each matrix has its own: what others have stays until their turn."""
    shape = (3, 6, 10)
    one, two, three, four = gradients(shape, 4)
    one[1:], two[2], four[0] = 0, 0, 0
    stepped = GaLore(SETTINGS, train_plan(), Any, {"q": torch.nn.Parameter(torch.ones(shape))})  # type: ignore[arg-type]
    for gradient, from_which in ((one, (one, None, None)), (two, (one, two, None)), (three, (one, two, three))):
        _stepped(stepped, gradient)
        for index, drawn in enumerate(from_which):
            found = stepped.projectors["q"][index]
            assert found.eq(0).all() if drawn is None else _own(found, drawn[index])
        assert ("q" in stepped.lacks) == (None in from_which)
    _stepped(stepped, four)
    assert [_own(stepped.projectors["q"][index], four[index]) for index in range(3)] == [False, True, True]
    assert _own(stepped.projectors["q"][0], one[0])


def test_projectors_are_drawn_side_by_side(train_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it is alone, and where one was drawn torch has the threads that it had."""
    plan, threads = train_plan(), torch.get_num_threads()
    drawn_by = set[int]()
    draw = GaLore.draw
    monkeypatch.setattr(GaLore, "draw", lambda *given: drawn_by.add(threading.get_ident()) or draw(*given))

    def stepped(together: bool) -> list[torch.Tensor]:
        matrices = {str(at): torch.nn.Parameter(torch.ones(shape)) for at, shape in enumerate([*SHAPES.values()] * 2)}
        for matrix in matrices.values():
            (matrix.grad,) = gradients(tuple(matrix.shape), 1)
        each = [matrices] if together else [{name: matrix} for name, matrix in matrices.items()]
        optimizers = [GaLore(SETTINGS, plan, Any, some) for some in each]  # type: ignore[arg-type]
        for one in optimizers:
            one.step()
        projectors = {name: value for one in optimizers for name, value in one.projectors.items()}
        return [value for name in matrices for value in (matrices[name].detach(), projectors[name])]

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


@pytest.mark.parametrize(
    ("method", "name"),
    [("apollo", "adamw"), *(("galore", name) for name in ("adamw", "adamw_8bit", "adafactor", "lion"))],
)
def test_matrices_of_one_shape_step_together_as_alone(
    method: str, name: str, train_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time in a product, three in a step of the inner optimizer; states are larger than 4096 elements."""
    kind = {"apollo": Apollo, "galore": GaLore}[method]
    settings: Any = SimpleNamespace(**{**vars(SETTINGS), "rank": 32, "scaling": "channel", "growth_limit": 1.01})
    plan, shapes = train_plan(optimizer=name, weight_decay=DECAY), [(64, 160), (160, 64), (2, 64, 160)] * 3
    monkeypatch.setattr(optimizers, "MULTIPLIED", 2 * 64 * 160 + 1)
    monkeypatch.setattr(optimizers, "STEPPED", 3 * 64 * 160 + 1)
    moved = []
    for together in (True, False):
        torch.manual_seed(0)
        matrices = {str(at): torch.nn.Parameter(torch.randn(shape)) for at, shape in enumerate(shapes)}
        each = [matrices] if together else [{key: matrix} for key, matrix in matrices.items()]
        stepped = [kind(settings, plan, Any, some) for some in each]  # type: ignore[arg-type]
        for step in range(2 * INTERVAL):
            for matrix in matrices.values():
                matrix.grad = gradients(tuple(matrix.shape), 1)[0] * (1 + step)
            torch.manual_seed(step)  # APOLLO draws in the order of the matrices
            for one in stepped:
                one.step()
        moved.append([matrix.detach() for matrix in matrices.values()])
    for mine, theirs in zip(*moved, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_the_pass", [True, False])
def test_a_step_between_two_projectors_reads_nothing(in_the_pass: bool, train_plan: Callable[..., Any]) -> None:
    """A GPU need not be waited for."""
    made = Stepped(train_plan(weight_decay=DECAY), in_the_pass=in_the_pass)
    made.backward(0)
    made.step()  # which draws them
    with Reads() as reads:
        made.backward(1)
        if in_the_pass:
            made.made.clip(1.0)
        made.step()
    assert reads.operations and reads.seen == []


def test_a_matrix_without_a_gradient_waits(train_plan: Callable[..., Any]) -> None:
    """As an expert that no token was sent to: it keeps its step count, and the others move."""
    matrices = {name: torch.nn.Parameter(torch.ones(6, 10)) for name in ("one", "other")}
    stepped = GaLore(SETTINGS, train_plan(), Any, matrices)  # type: ignore[arg-type]
    matrices["one"].grad = gradients((6, 10), 1)[0]
    stepped.step()
    assert stepped.steps == {"one": 1, "other": 0} and stepped.projectors.keys() == {"one"}
    assert matrices["other"].eq(1).all() and not matrices["one"].eq(1).all()


# --- gradients that are projected within the backward pass


class Stepped:
    """A small network, its matrices GaLore's, whose gradients are projected in the pass or when all are there."""

    def __init__(self, plan: Any, *, in_the_pass: bool):
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 12))
        named = dict(self.network.named_parameters())
        self.rest: dict[str, Any] = {name: value for name, value in named.items() if value.ndim == 1}
        matrices = {name: value for name, value in named.items() if value.ndim == 2}
        self.low = GaLore(SETTINGS, plan, Any, matrices)  # type: ignore[arg-type]
        others = [torch.optim.AdamW(self.rest.values(), lr=plan.settings.stage.learning_rate, fused=True)]
        self.made: Any = (
            optimizers.ProjectedInThePass(others, self.rest, self.low) if in_the_pass else Several([*others, self.low])
        )

    def backward(self, seed: int, *, times: float = 1.0) -> None:
        rows = torch.randn(64, 12, generator=torch.Generator().manual_seed(seed))
        (self.network(rows).square().sum() * times).backward()

    def clip(self, limit: float) -> float:
        if isinstance(self.made, Hooked):
            return self.made.clip(limit).item()
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit).item()

    def step(self) -> None:
        self.made.step()
        self.made.zero_grad()


@pytest.mark.parametrize(("limit", "apart"), [(float("inf"), 0.0), (0.5, 1e-5)])
def test_a_gradient_is_projected_before_it_is_clipped_or_after(
    limit: float, apart: float, train_plan: Callable[..., Any]
) -> None:
    early, late = (Stepped(train_plan(weight_decay=DECAY), in_the_pass=early) for early in (True, False))
    for step in range(2 * INTERVAL + 1):
        norms = []
        for each in (early, late):
            each.backward(step)
            norms.append(each.clip(limit))
            each.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.5
        for mine, theirs in zip(early.network.parameters(), late.network.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=apart)


def test_of_what_was_projected_no_gradient_stays(
    train_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a projector is to be drawn, gradients of so many elements wait for each other."""
    made = Stepped(train_plan(), in_the_pass=True)
    alive: list[int] = []
    matrices = made.low.matrices.values()
    for matrix in matrices:  # called after the optimizer's own hook
        matrix.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(each.grad is not None for each in matrices))
        )
    monkeypatch.setattr(optimizers, "AT_ONCE", 241)  # one matrix has 240
    for step in range(2):
        made.backward(step)
        made.clip(1.0)
        assert made.low.low.keys() == made.low.matrices.keys() and all(each.grad is None for each in matrices)
        made.step()
    assert alive == [1, 0, 0, 0]
    assert not made.low.low and set(made.low.steps.values()) == {2}


def test_what_is_no_number_draws_no_projector(train_plan: Callable[..., Any]) -> None:
    """LAPACK would raise; the update is dropped, and the next one is due."""
    made = Stepped(train_plan(), in_the_pass=True)
    before = [value.detach().clone() for value in made.network.parameters()]
    made.backward(0, times=float("nan"))
    assert not np.isfinite(made.clip(1.0))
    made.made.zero_grad()
    assert all(map(torch.equal, before, made.network.parameters()))
    made.backward(1)
    assert np.isfinite(made.clip(1.0))
    made.step()
    assert all(value.isfinite().all() for value in made.network.parameters())
    assert set(made.low.steps.values()) == {1}
    assert all(projector.isfinite().all() for projector in made.low.projectors.values())


def test_a_tensor_without_a_gradient_is_told(train_plan: Callable[..., Any]) -> None:
    made, names = Stepped(train_plan(), in_the_pass=True), ("0.weight", "0.bias")
    for times, wanted in ((0.0, False), (1.0, True)):
        assert not any(made.made.has_gradient(name) for name in names)
        made.backward(0, times=times)
        made.clip(1.0)
        assert [made.made.has_gradient(name) for name in names] == [wanted] * 2
        made.made.zero_grad()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, optimizers.ProjectedInThePass),
        ({"gradient_accumulation_steps": 2}, Several),
        ({"autocast": "float16"}, Several),
    ],
)
def test_only_a_gradient_that_one_pass_makes_whole_is_projected_in_it(
    changes: dict[str, Any], wanted: type, train_plan: Callable[..., Any]
) -> None:
    import tiny
    from transformers import AutoModelForCausalLM

    config = tiny.config()
    model, arch = AutoModelForCausalLM.from_config(config), architecture(config.to_dict())
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    plan = train_plan(**changes)
    assert type(optimizer(model, SETTINGS, plan, arch)) is wanted
    assert bool(kept(SETTINGS, shapes, arch, plan)) == (wanted is optimizers.ProjectedInThePass)


def test_eight_bits_step_almost_as_algorithm_2(train_plan: Callable[..., Any]) -> None:
    """At the projected size the state has more than 4096 elements, so that it is kept in 8 bits."""
    shape, settings = (96, 300), SimpleNamespace(**{**vars(SETTINGS), "rank": 32})
    moved = {}
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(shape))
        stepped = GaLore(settings, train_plan(optimizer=name), Any, {"q": matrix})  # type: ignore[arg-type]
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
    torch.stack([(value * torch.randn_like(value)).sum() for value in model.parameters()]).sum().backward()
    made.step()
    assert _held(made.state_dict()) == optimizer_bytes(settings, name, shapes, arch, dtype.itemsize)


def _held(state: Any, name: str = "") -> int:
    if isinstance(state, torch.Tensor):
        return 0 if name in {"step", "qmap1", "qmap2", "RMS"} else state.nbytes
    if isinstance(state, dict):
        return sum(_held(value, key if isinstance(key, str) else name) for key, value in state.items())
    return sum(_held(value, name) for value in state) if isinstance(state, list) else 0
