"""BAdam: one block at a time, each in its turn, and within a period Adam as it is, from nothing."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import compiled
from low_rank import Adam

from factory import rounding
from factory.architecture import architecture
from factory.methods.badam.run import active
from factory.methods.badam.spec import blocks, gradients, optimizer_bytes, trainable
from factory.optimizers.spec import state_bytes
from factory.steps.engine import Engine
from factory.steps.watch import Alive

PLAIN = (
    "method=badam",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-2",
    "stage.max_grad_norm=null",
    "stage.save_steps=null",
    "precision=fp32",
    "evaluate.perplexity=false",
)
EVERYTHING = ("method.embedding=true", "method.head=true")


def settings(**changes: Any) -> Any:
    from types import SimpleNamespace

    values = {"switch_interval": 3, "order": "ascending", "embedding": False, "head": False, "parts": ("language",)}
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def arch() -> Any:
    return architecture(tiny.config(num_hidden_layers=4).to_dict())


def test_blocks_are_layers_and_what_is_named(arch: Any) -> None:
    plain = blocks(settings(), arch)
    assert plain == [arch.layer_tensors(index) for index in range(4)]
    whole = blocks(settings(embedding=True, head=True), arch)
    assert [sorted(block) for block in (whole[0], whole[-1])] == [
        ["model.embed_tokens.weight"],
        ["lm_head.weight", "model.norm.weight"],
    ]
    assert whole[1:-1] == plain
    assert trainable(settings(embedding=True, head=True), arch) == dict(arch.tensors())


def test_the_order_is_a_function_of_the_step() -> None:
    turns = {
        order: [active(settings(order=order), 4, step // 3, 7) for step in range(48)]
        for order in ("ascending", "descending", "random")
    }
    for found in turns.values():
        periods = [set(found[start : start + 3]) for start in range(0, 48, 3)]
        assert all(len(period) == 1 for period in periods)
        rounds = [[found[start] for start in range(first, first + 12, 3)] for first in range(0, 48, 12)]
        assert all(sorted(round_) == [0, 1, 2, 3] for round_ in rounds)
    assert turns["ascending"][:12:3] == [0, 1, 2, 3]
    assert turns["descending"][:12:3] == [3, 2, 1, 0]
    shuffled = {tuple(turns["random"][first : first + 12 : 3]) for first in range(0, 48, 12)}
    assert len(shuffled) > 1
    assert turns["random"] != [active(settings(order="random"), 4, step // 3, 8) for step in range(48)]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The weights before each step, and every gradient of it."""
    seen: list[dict[str, Any]] = []
    original = Engine.clip

    def clip(engine: Engine) -> float:
        trained = engine.trained
        seen.append(
            {
                "weights": {name: value.detach().double().numpy().copy() for name, value in trained.items()},
                "gradients": {
                    name: value.grad.double().numpy().copy()
                    for name, value in trained.items()
                    if value.grad is not None
                },
            }
        )
        return original(engine)

    monkeypatch.setattr(Engine, "clip", clip)
    return seen


def test_a_block_is_stepped_in_float32_and_held_in_sixteen_bits(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate that bfloat16 weights would mostly round away: Adam of each period on its float32 copies, in NumPy."""
    rate, seen = 1e-5, list[dict[str, Any]]()
    original = Engine.clip

    def clip(engine: Engine) -> float:
        trained, optimizer = engine.trained, engine.optimizer
        found = original(engine)
        assert all(value.grad is None for value in trained.values())
        assert all(value.dtype == torch.bfloat16 for value in trained.values())
        seen.append(
            {
                "weights": {name: value.detach().clone() for name, value in trained.items()},
                "copies": {name: value.detach().clone() for name, value in optimizer.copies.items()},
                "gradients": {name: value.grad.double().numpy().copy() for name, value in optimizer.copies.items()},
            }
        )
        return found

    monkeypatch.setattr(Engine, "clip", clip)
    options = ("method.order=ascending", "method.switch_interval=4", "stage.max_steps=12", "precision=bf16")
    twice = ("stage.batch_size=2", "stage.gradient_accumulation_steps=2")
    done = execute(*PLAIN, *EVERYTHING, *options, *twice, f"stage.learning_rate={rate}")
    moved = rounded = reached = 0
    masters: dict[str, Any] = {}
    adams: dict[str, Adam] = {}
    for step, now in enumerate(seen):
        if step % 4 == 0:
            masters = {name: now["weights"][name].double().numpy() for name in now["copies"]}
            adams = {name: Adam() for name in masters}
        for name, copy in now["copies"].items():
            assert copy.dtype == torch.float32
            np.testing.assert_allclose(copy.double().numpy(), masters[name], atol=1e-7, err_msg=f"{step}: {name}")
            assert now["weights"][name].equal(rounding.rounded(copy, torch.bfloat16)), name
            masters[name] = masters[name] - rate * adams[name](now["gradients"][name])
        if step % 4 == 3:
            final = seen[step + 1]["weights"] if step + 1 < len(seen) else dict(done.model.named_parameters())
            for name, copy in now["copies"].items():
                reached += (seen[step - 3]["gradients"][name] != 0).sum()  # no token of some rows is in the data
                moved += (copy != seen[step - 3]["copies"][name]).sum().item()
                rounded += (final[name] != seen[step - 3]["weights"][name]).sum().item()
            assert all(value.equal(final[name]) for name, value in now["weights"].items() if name not in masters)
    assert 0.99 * reached < moved
    assert rounded < 0.5 * moved
    assert done.run.checks["gradients_alive"]["passed"]
    assert {value.dtype for value in done.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "an_element", "copied"), [("bf16", 2, True), ("pure_bf16", 2, False), ("fp32", 4, False)]
)
def test_memory_is_the_papers(precision: str, an_element: int, copied: bool) -> None:
    """2M + 16M/D: the weights, and of one of D blocks the float32 copy, its gradient and both moments."""
    base = ("model=llama3_8b", "hardware=rtx4090", "stage.batch_size=1", f"precision={precision}")
    plan = compiled(*base, "method=badam", training=False)
    memory, arch = plan.estimate.memory, architecture(plan.steps.load.config)
    block = sum(prod(shape) for shape in arch.layer_tensors(0).values())
    assert memory.weights == an_element * arch.parameters() + 4 * block * copied
    assert memory.optimizer == 2 * block * (4 if copied else an_element)  # two numbers, held as what is stepped
    assert memory.gradients == (2 if precision == "pure_bf16" else 4) * block
    assert memory.fits == (precision != "fp32")
    everything = compiled(*base, "method=badam", *EVERYTHING, training=False)
    assert everything.steps.load.dtype == plan.steps.load.dtype


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_each_period_is_adam_on_its_block(
    order: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of periods of 3 steps, in NumPy and float64: state and its bias corrections start anew each time."""
    seen = watched(monkeypatch)
    options = (*PLAIN, *EVERYTHING, f"method.order={order}", "method.switch_interval=3", "stage.max_steps=24")
    done = execute(*options, "stage.weight_decay=0.1")
    found = blocks(settings(embedding=True, head=True), architecture(done.model.config.to_dict()))
    final = {name: value.detach().double().numpy() for name, value in done.model.named_parameters()}
    adams: dict[str, Adam] = {}
    visits = [0] * len(found)
    for step, now in enumerate(seen):
        (chosen,) = (index for index, block in enumerate(found) if set(block) == set(now["gradients"]))
        if step % 3 == 0:
            adams = {name: Adam() for name in found[chosen]}
            visits[chosen] += 1
        after = seen[step + 1]["weights"] if step + 1 < len(seen) else final
        for name, before in now["weights"].items():
            if name not in adams:
                assert np.array_equal(after[name], before), f"step {step}: {name}"
                continue
            decayed = before * (1 - 1e-2 * 0.1) if before.ndim == 2 else before
            wanted = decayed - 1e-2 * adams[name](now["gradients"][name])
            np.testing.assert_allclose(after[name], wanted, atol=2e-6, err_msg=f"step {step}: {name}")
    assert visits == [2] * 4
    assert all(value.requires_grad for value in done.model.parameters())


def test_a_tensor_that_has_no_gradient_in_its_turn_is_found(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Alive.look

    def losing(alive: Alive, run: Any, engine: Engine, **more: Any) -> None:
        grad = engine.trained["model.layers.1.mlp.up_proj.weight"].grad
        if grad is not None:
            grad.zero_()
        original(alive, run, engine, **more)

    monkeypatch.setattr(Alive, "look", losing)
    done = execute(*PLAIN, "method.switch_interval=2", "method.order=ascending", "stage.max_steps=4")
    assert not done.run.checks["gradients_alive"]["passed"]
    assert "not model.layers.1.mlp.up_proj.weight" in done.run.checks["gradients_alive"]["detail"]


def test_blocks_that_never_had_their_turn_are_said(execute: Callable[..., Any]) -> None:
    done = execute(*PLAIN, "method.switch_interval=9", "method.order=ascending", "stage.max_steps=2")
    check = done.run.checks["gradients_alive"]
    assert check["passed"]
    assert "9 of 18" in check["detail"] and "9 were never trained" in check["detail"]


def test_memory_is_that_of_the_largest_block(arch: Any) -> None:
    small, whole = settings(), settings(embedding=True, head=True)
    for chosen, largest in ((small, arch.layer_tensors(0)), (whole, {"w": (512, 32), "n": (32,)})):
        shapes = trainable(chosen, arch)
        assert optimizer_bytes(chosen, "adamw", shapes, arch, 4) == state_bytes("adamw", largest, arch, 4)
        assert gradients(chosen, shapes, arch) == state_bytes("adamw", largest, arch, 4) // 8


def test_the_state_is_one_blocks(execute: Callable[..., Any]) -> None:
    done = execute(*PLAIN, "method.switch_interval=1", "stage.max_steps=4", "stage.save_steps=4")
    (inner,) = torch.load(done.run.folder.checkpoint() / "optimizer.pt", weights_only=True)["optimizers"]
    state = inner["state"]
    held = sum(entry[name].nbytes for entry in state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert held == done.run.plan.estimate.memory.optimizer


@pytest.mark.parametrize("method", ["badam", "badam_ratio"])
def test_a_tied_head_is_told_to_be_the_embedding(method: str) -> None:
    words = ("hardware=cpu", f"method={method}", "method.head=true")
    told = [note for note in compiled(*words, training=False).notes if note.startswith("method.head")]
    assert len(told) == 1 and "method.embedding=true" in told[0]
    assert not [note for note in compiled(*words, "method.embedding=true", training=False).notes if "head" in note]
