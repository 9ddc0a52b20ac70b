"""On a GPU: nothing in a step waits for it that needs no number of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from factory.inference.draw import Drawer, draw
from factory.inference.types import Sampling, Token
from factory.losses import LinearCrossEntropy
from factory.methods.adalora.run import penalty
from factory.methods.apollo.run import Apollo
from factory.methods.galore.run import GaLore
from factory.steps import proofs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
SETTINGS: Any = SimpleNamespace(rank=4, update_interval=3, scale=0.25, scaling="channel", growth_limit=1.01)


@contextmanager
def without_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", [Apollo, GaLore])
def test_low_rank_steps(kind: Any, train_plan: Callable[..., Any]) -> None:
    """Between two projectors; and they move the weights as on a CPU, which draws GaLore's from the same gradients."""
    torch.manual_seed(0)
    start = {str(at): torch.randn(12, 20) for at in range(5)} | {"tall": torch.randn(20, 12)}
    gradients = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(3)]
    moved = {}
    for device in ("cpu", "cuda"):
        matrices = {name: torch.nn.Parameter(value.to(device)) for name, value in start.items()}
        stepped = kind(SETTINGS, train_plan(weight_decay=0.1), Any, matrices)
        for step, given in enumerate(gradients):
            for name, matrix in matrices.items():
                matrix.grad = given[name].to(device)
            if device == "cuda" and step:
                with without_waiting():
                    stepped.step()
            else:
                stepped.step()
        moved[device] = {name: value.detach().cpu() for name, value in matrices.items()}
    if kind is GaLore:
        for name, value in moved["cpu"].items():
            torch.testing.assert_close(moved["cuda"][name], value, rtol=1e-3, atol=1e-4)


def test_adaloras_penalty() -> None:
    parts = {"lora_A": torch.nn.Linear(30, 4, bias=False), "lora_B": torch.nn.Linear(4, 30, bias=False)}
    layers = torch.nn.ModuleDict(parts).cuda()
    settings: Any = SimpleNamespace(orthogonality=0.5)
    with without_waiting():
        penalty(torch.nn.ModuleDict({"layer": layers}), settings).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_heads_gradient_is_rounded_once(dtype: torch.dtype) -> None:
    """A head of zeros has slopes of 1/8 and -7/8, exact in 16 bits: only the sum over the chunks can lose digits."""
    torch.manual_seed(0)
    hidden = torch.randn(4096, 64, dtype=dtype, device="cuda")
    weight = torch.zeros(8, 64, dtype=dtype, device="cuda", requires_grad=True)
    target = torch.randint(0, 8, (4096,), device="cuda")
    with without_waiting():
        (LinearCrossEntropy.apply(hidden, weight, target, dtype) / 3).backward()  # type: ignore[no-untyped-call]
    exact = (1 / 8 - functional.one_hot(target, 8).double()).T @ hidden.double() / 3
    rounding = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), exact, rtol=1.001 * rounding, atol=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"top_k": 2}, {"top_p": 0.7}])
def test_tokens_are_drawn_there(sampling: dict[str, Any]) -> None:
    """As often as they are likely, each row by its own seed."""
    chances = torch.tensor([0.5, 0.3, 0.2], device="cuda")
    drawers = [Drawer(Sampling(max_tokens=1, temperature=1.0, seed=seed, **sampling), None) for seed in range(2000)]
    assert drawers[0].chosen(chances.log()).device.type == "cuda"
    found = draw(drawers, chances.log().expand(len(drawers), -1))
    counts = torch.bincount(torch.tensor([each.id for each in found if isinstance(each, Token)]), minlength=3)
    wanted = torch.tensor([0.5, 0.3, 0.0 if sampling else 0.2])
    torch.testing.assert_close(counts / 2000, wanted / wanted.sum(), rtol=0, atol=0.05)


def test_checksums_are_read_once() -> None:
    model = torch.nn.ModuleList(torch.nn.Linear(300, 700) for _ in range(3))
    names = [name for name, _ in model.named_parameters()]
    known = proofs.checksums(model, names)
    model.cuda()
    with without_waiting():
        totals = [proofs._total(value) for value in model.parameters()]
    assert [int(total) % 2**64 for total in totals] == [known[name][1] for name in names]
    assert proofs.checksums(model, names) == known
