"""Paged optimizers without a GPU: `meta` stands in for it, whose tensors bitsandbytes takes for those of a GPU."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from conftest import planned_train
from test_optimizers import ARCH, TABLES
from torch import Tensor

from factory.optimizers.run import build
from factory.optimizers.spec import NEEDS_GPU, PAGED_FROM, state_bytes, unpaged

SHAPES = {
    "model.embed_tokens.weight": (PAGED_FROM // 200, 200),
    "model.layers.0.mlp.up_proj.weight": (PAGED_FROM // 200 - 1, 200),  # two of it are more than is paged
    "model.layers.0.self_attn.k_proj.weight": (16, 64),  # too small for 8 bits
    "model.norm.weight": (64,),
}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The managed memory that was asked for: torch takes it for the CPU's."""
    made: list[Tensor] = []

    def page(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert device.type == "meta"
        made.append(torch.empty(shape, dtype=dtype))
        made[-1].is_paged = True  # type: ignore[attr-defined]
        return made[-1]

    monkeypatch.setattr(functional, "get_paged", page)
    monkeypatch.setattr(functional, "fill", lambda page, value: page.fill_(value))
    return made


def built(name: str) -> Any:
    named: dict[str, Tensor] = {
        key: torch.nn.Parameter(torch.empty(shape, device="meta")) for key, shape in SHAPES.items()
    }
    return build(named, planned_train(optimizer=name).settings.stage, ARCH)


def begun(name: str) -> Any:
    """With the states that its first step makes."""
    made = built(name)
    for at, group in enumerate(made.param_groups):
        for index, parameter in enumerate(group["params"]):
            made.init_state(group, parameter, at, index)
    return made


def states(made: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each one's name, the parameter that it is of, and the state."""
    for parameter, state in made.state.items():
        yield from ((name, parameter, value) for name, value in state.items() if isinstance(value, Tensor))


@pytest.mark.parametrize("name", sorted(NEEDS_GPU))
def test_what_is_paged_is_not_counted_on_the_gpu(name: str, pages: list[Tensor]) -> None:
    stays = [value for key, _, value in states(begun(name)) if value.device.type == "meta" and key not in TABLES]
    counted = [state_bytes(each, SHAPES, ARCH, 4) for each in (unpaged(name), name)]
    assert counted[1] == sum(value.nbytes for value in stays)
    assert counted[0] - counted[1] == sum(page.nbytes for page in pages) > 0


@pytest.mark.parametrize("name", sorted(NEEDS_GPU))
def test_what_is_loaded_is_paged_again(name: str, pages: list[Tensor]) -> None:
    """To the bit what was, in the same pages when it is loaded twice; on the GPU is the rest."""
    state, before = begun(name).state_dict(), deepcopy(pages)
    for each in state["state"].values():  # as a checkpoint is read: all on the CPU, and plain
        own = each["__bnb_optimizer_quant_state__"]
        own.update((key, torch.randint(1, 9, value.shape).to(value.dtype)) for key, value in own.items())
    wanted = [own for each in state["state"].values() for own in each["__bnb_optimizer_quant_state__"].items()]
    pages.clear()
    resumed = built(name)
    for _ in range(2):
        resumed.load_state_dict(state)
        for (key, saved), (_, parameter, value) in zip(wanted, states(resumed), strict=True):
            paged = key in ("state1", "state2") and parameter.numel() >= PAGED_FROM
            assert (value.dtype, value.shape) == (saved.dtype, saved.shape)
            assert (getattr(value, "is_paged", False), value.device.type) == (paged, "cpu" if paged else "meta"), key
            assert not paged or torch.equal(value, saved)
        assert [page.shape for page in pages] == [page.shape for page in before] and pages
