"""What is resident of glibc's heap, and when it is given back."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from factory.estimate.heap import Heap, gives_back
from factory.estimate.tape import Storage

MIB = 2**20


@pytest.mark.parametrize(("back", "resident"), [(False, 12 + 13 + 12), (True, 12 + 13)])
def test_what_is_given_back_is_not_resident(back: bool, resident: int) -> None:
    """A tensor's hole does not hold another of its size, which lies at the end."""
    heap = Heap()
    first = heap.take(12 * MIB)
    heap.take_small(32)  # in the rest beside it
    heap.take(13 * MIB)
    heap.give(*first)
    if back:
        heap.give_back()
    heap.take(12 * MIB)
    assert round(heap.peak / MIB) == resident


def test_what_was_given_back_is_resident_once_it_is_used_again() -> None:
    """In its old place, in part, though there may be room elsewhere that is resident still."""
    heap = Heap()
    first, _, third = heap.take(12 * MIB), heap.take(13 * MIB), heap.take(8 * MIB)
    heap.take(MIB)
    heap.give(*first)
    heap.give_back()
    heap.give(*third)  # resident, though free
    assert heap.top - heap.peak < 2**10
    heap.take(9 * MIB)
    assert round((heap.top - heap.missing) / MIB) == 9 + 13 + 8 + 1


def test_a_block_takes_the_smallest_hole_that_holds_it() -> None:
    heap = Heap()
    holes = [heap.take(count * MIB) for count in (4, 1, 3, 1, 3, 1)]
    for at in (0, 2, 4):
        heap.give(*holes[at])
    assert heap.take(2 * MIB)[0] == holes[2][0]
    assert heap.take(2 * MIB)[0] == holes[4][0]
    assert heap.take(2 * MIB)[0] == holes[0][0]


@pytest.mark.parametrize(("layers", "expected"), [(2, [0, 1]), (30, [0, 15])])
def test_the_heap_is_given_back_where_layers_are_recomputed(layers: int, expected: list[int]) -> None:
    def turns(recomputed: int, *, compiled: bool = False) -> list[int]:
        patch: Any = SimpleNamespace(recomputed=lambda _: recomputed)
        return [*gives_back(patch, layers, compiled=compiled)]

    assert turns(layers) == expected
    assert turns(1) == [0]
    assert turns(0) == turns(layers, compiled=True) == []


@pytest.mark.parametrize("kept", ["true", "selective"])
def test_before_a_layer_runs_for_the_first_time_and_again(
    kept: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from factory.steps import kernels

    short = ("stage.max_steps=1", "data.max_samples=16", "precision=fp32", "compute.attention=sdpa")
    done = execute("method=full", f"compute.activation_checkpointing={kept}", *short)
    times: list[int] = []
    monkeypatch.setattr(kernels, "give_back", lambda: times.append(len(times)))
    tokens = torch.tensor([done.dataset.train[0].ids])
    loss = done.model.train()(input_ids=tokens, labels=tokens).loss
    layers = len(done.model.model.layers)
    assert len(times) == layers + 1  # and after the last
    loss.backward()
    assert len(times) == 2 * layers + 1


def test_what_a_signal_ended_while_it_was_made_says_nothing_when_it_goes() -> None:
    half = Storage.__new__(Storage)
    half.__del__()
