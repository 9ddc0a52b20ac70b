"""Batches: every example once an epoch, in an order of seed and epoch, and neither padding nor packing moves a loss."""

from itertools import chain
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from factory.data import encode
from factory.data.batches import collate, micro_batches, steps_per_epoch, total_steps
from factory.data.encode import IGNORED, Example
from factory.losses import causal_lm


def epoch_of(number: int, examples: int, batch: int, accumulation: int, seed: int = 0) -> list[list[list[int]]]:
    steps = steps_per_epoch(examples, batch, accumulation)
    return [
        micro_batches(step, examples, batch, accumulation, seed) for step in range(number * steps, (number + 1) * steps)
    ]


@pytest.mark.parametrize(
    ("examples", "batch", "accumulation"), [(1, 4, 2), (8, 4, 2), (23, 4, 2), (17, 1, 4), (9, 3, 1)]
)
@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_has_every_example_once(examples: int, batch: int, accumulation: int, number: int) -> None:
    steps = epoch_of(number, examples, batch, accumulation)
    assert len(steps) == ceil(examples / (batch * accumulation))
    assert sorted(chain.from_iterable(chain.from_iterable(steps))) == list(range(examples))
    *full, last = steps
    assert all([len(micro) for micro in step] == [batch] * accumulation for step in full)
    left = examples - len(full) * batch * accumulation
    assert [len(micro) for micro in last] == [batch] * (left // batch) + [left % batch] * (left % batch > 0)


def test_the_order_is_of_seed_and_epoch() -> None:
    first = epoch_of(0, 50, 4, 1, seed=1)
    assert first == epoch_of(0, 50, 4, 1, seed=1)
    assert first != epoch_of(1, 50, 4, 1, seed=1)
    assert first != epoch_of(0, 50, 4, 1, seed=2)
    flat = [index for step in first for micro in step for index in micro]
    again = [index for step in epoch_of(0, 50, 2, 4, seed=1) for micro in step for index in micro]
    assert flat == again  # the batch's size changes the cuts, not the order


def test_steps_of_fractional_epochs_and_max_steps() -> None:
    assert total_steps(100, 4, 2, 1.0, None) == 13
    assert total_steps(100, 4, 2, 0.5, None) == 7
    assert total_steps(100, 4, 2, 2.25, None) == 30
    assert total_steps(3, 4, 2, 0.01, None) == 1
    assert total_steps(100, 4, 2, 1.0, 40) == 40
    # beyond the data: as many whole epochs as fit, each of every example
    seen = [micro_batches(step, 10, 4, 1, 0) for step in range(total_steps(10, 4, 1, 1.0, 9))]
    assert sorted(chain.from_iterable(chain.from_iterable(seen))) == sorted([*range(10)] * 3)


def rows(*sizes: int, untrained: int = 2) -> list[Example]:
    torch.manual_seed(sum(sizes))
    ids = [torch.randint(3, 512, (size,)).tolist() for size in sizes]
    return [Example(row, [IGNORED] * untrained + row[untrained:]) for row in ids]


def test_collate_pads_on_the_right_without_a_mask() -> None:
    examples = rows(5, 11)
    batch = collate(examples, 7, "cpu")
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    for row, example in enumerate(examples):
        size = len(example.ids)
        assert batch["input_ids"][row].tolist() == example.ids + [7] * (16 - size)
        assert batch["labels"][row].tolist() == example.labels + [IGNORED] * (16 - size)
    packed = Example(examples[1].ids, examples[1].labels, (4, 7))
    positions = collate([examples[0], packed], 7, "cpu")["position_ids"]
    assert positions[0].tolist() == [*range(5), *range(11)]
    assert positions[1].tolist() == [*range(4), *range(7), *range(5)]


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=request.param)


def loss_and_gradients(model: Any, *batches: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = torch.stack([causal_lm(model, collate(batch, 0, "cpu")) for batch in batches]).sum()
    loss.backward()
    return loss.item(), {name: value.grad.clone() for name, value in model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(value, right[name], rtol=1e-5, atol=1e-5) for name, value in left.items())


def test_padding_changes_no_loss(model: Any) -> None:
    examples = rows(5, 40, 23)
    loss, gradients = loss_and_gradients(model, examples)
    alone, wanted = loss_and_gradients(model, *([example] for example in examples))
    assert loss == pytest.approx(alone, rel=1e-6)
    assert same(gradients, wanted)


def joined(members: list[Example], isolate: bool) -> Example:
    return encode._joined(members, cast(Any, SimpleNamespace(isolate_documents=isolate)))


@pytest.mark.parametrize("second", [(), (30,), (9, 1, 20)])
def test_isolated_documents_are_as_alone(model: Any, second: tuple[int, ...]) -> None:
    """Two packed sequences of unlike length in one batch: same loss, same gradients as a batch of the rows."""
    first = rows(12, 7, 31)
    members = [first, rows(*second, untrained=0)] if second else [first]
    alone, wanted = loss_and_gradients(model, *([example] for example in chain(*members)))
    loss, gradients = loss_and_gradients(model, [joined(part, True) for part in members])
    assert loss == pytest.approx(alone, rel=1e-5)
    assert same(gradients, wanted)
    loss, gradients = loss_and_gradients(model, [joined(part, False) for part in members])
    assert loss != pytest.approx(alone, rel=1e-5)
    assert not same(gradients, wanted)
