"""Batches: every example once an epoch, in an order of seed and epoch, and neither padding nor packing moves a loss."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from factory.data import batches
from factory.data.batches import (
    FLASH,
    LENGTHS,
    Prefetcher,
    collate,
    cut,
    halves,
    lengths,
    micro_batches,
    mismatched,
    read,
    steps,
)
from factory.data.dataset import IGNORED, TRAINED_AT, Example, Labelled, Pair, example
from factory.data.prepare.store import Side
from factory.losses import causal_lm
from factory.schedules import steps_per_epoch, total_steps


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
    assert batch.keys() == {"input_ids", "labels", TRAINED_AT}
    assert batch[TRAINED_AT].tolist() == (batch["labels"][:, 1:] != IGNORED).nonzero().T.tolist()
    assert batch[TRAINED_AT].tolist() == [[0] * 3 + [1] * 9, [*range(1, 4), *range(1, 10)]]
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    for row, each in enumerate(examples):
        size = len(each.ids)
        assert batch["input_ids"][row].tolist() == each.ids + [7] * (16 - size)
        assert batch["labels"][row].tolist() == each.labels + [IGNORED] * (16 - size)
    packed = Example(examples[1].ids, examples[1].labels, (4, 7))
    positions = collate([examples[0], packed], 7, "cpu")["position_ids"]
    assert positions[0].tolist() == [*range(5), *range(11)]
    assert positions[1].tolist() == [*range(4), *range(7), *range(5)]


def test_kernels_are_given_where_sequences_begin() -> None:
    """As transformers finds them in the positions, layer by layer, of a single row; and of several."""
    plain, other = rows(11, 5)
    packed = Example(plain.ids, plain.labels, (4, 6, 1))
    batch = collate([packed], 7, "cpu", bounds=True)
    bounds, longest = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    for name, found in zip(FLASH, (bounds[0], longest[0]) * 2, strict=True):
        assert torch.equal(torch.as_tensor(batch[name], dtype=torch.int32), found)
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 10, 11, 16] and batch["max_length_k"] == 6
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch[LENGTHS] == (4, 6, 1, 5)
    assert collate([plain], 7, "cpu", bounds=True)["cu_seq_lens_k"].tolist() == [0, 11, 16]
    assert collate([packed, other], 7, "cpu", bounds=True)[LENGTHS] == (4, 6, 1, 5, 5, 11)
    assert collate([packed, other], 7, "cpu", bounds=True, padding_free=True)[LENGTHS] == (4, 6, 1, 5)
    assert FLASH[0] not in collate([packed], 7, "cpu")


def test_rows_stand_one_after_another() -> None:
    one, packed, other = rows(5, 11, 3)
    packed = replace(packed, documents=(4, 7))
    batch, plain = (collate([one, packed, other], 7, "cpu", padding_free=free) for free in (True, False))
    assert read(batch).tolist() == [[*one.ids, *packed.ids, *other.ids, *[7] * 5]]
    assert batch["joined_positions"].tolist() == [[*range(5), *range(4), *range(7), *range(3), *range(5)]]
    assert batch["row_starts"].tolist() == [0, 5, 16]
    assert torch.equal(read(plain), plain["input_ids"])
    assert all(torch.equal(batch[name], plain[name]) for name in ("input_ids", "labels", TRAINED_AT))


def test_labelled_answers_are_two_rows() -> None:
    given = [Labelled(each, True, 2) for each in rows(5, 11)]
    batch = collate(given, 7, "cpu", padding_free=True, bounds=True)
    own, wrong = halves(batch)
    assert read(own).tolist() == [[*given[0].example.ids, *given[1].example.ids]]
    assert read(wrong)[0, :5].tolist() == [*given[0].example.ids[:2], *given[1].example.ids[2:5]]
    assert own[LENGTHS] == (5, 11) and wrong[LENGTHS] == (11, 5)
    assert own[FLASH[0]].tolist() == [0, 5, 16] and wrong[FLASH[0]].tolist() == [0, 11, 16]
    for part in (own, wrong):
        assert part["labels"].shape[0] == 2
        assert part[TRAINED_AT][0].tolist() == (part["labels"][:, 1:] != IGNORED).nonzero()[:, 0].tolist()


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
    return example([(side(member), 0, len(member.ids)) for member in members], isolate=isolate)


def side(member: Example) -> Side:
    """What is trained of an example, whose prompt is not, as it lies in the cache."""
    start = next(number for number, label in enumerate(member.labels) if label != IGNORED)
    spans = np.array([[start, len(member.ids)]], np.int32)
    return Side(np.array(member.ids, np.int32), spans, np.ones(1, np.float32))


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


def test_weights_are_a_tensor_where_any_is_not_one() -> None:
    plain, weighted = rows(5), Example([4, 5, 6, 7], [IGNORED, 5, 6, 7], (), [0.0, 1.0, 0.5, 2.0])
    assert "weights" not in collate(plain, 0, "cpu")
    found = collate([*plain, weighted], 0, "cpu")["weights"]
    assert found.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 0.5, 2, 0, 0, 0, 0]]
    assert plain[0].trained == 3 and weighted.trained == 3.5 and weighted.count == 3
    assert Example([4, 5], [4, 5]).trained == 1  # nothing predicts the first


def test_pairs_are_the_chosen_and_then_the_rejected() -> None:
    chosen, rejected = rows(5, 7), rows(9, 3)
    batch = collate([Pair(*pair) for pair in zip(chosen, rejected, strict=True)], 0, "cpu")
    for number, each in enumerate([*chosen, *rejected]):
        assert batch["input_ids"][number, : len(each.ids)].tolist() == each.ids
        assert batch["labels"][number, : len(each.ids)].tolist() == each.labels
    assert batch["input_ids"].shape == (4, 16)


def labelled(*sizes: int) -> list[Labelled]:
    return [Labelled(each, number % 2 == 0, 2) for number, each in enumerate(rows(*sizes))]


def test_labelled_rows_are_followed_by_prompts_with_the_next_ones_answer() -> None:
    samples = labelled(5, 7, 4)
    batch = collate(samples, 0, "cpu")
    assert batch["desirable"].tolist() == [True, False, True]
    assert batch["input_ids"].shape == (6, 8)
    for number, sample in enumerate(samples):
        other = samples[(number + 1) % 3].example
        row = sample.example.ids[:2] + other.ids[2:]
        assert batch["input_ids"][3 + number, : len(row)].tolist() == row
        assert batch["labels"][3 + number, : len(row)].tolist() == [IGNORED, IGNORED, *other.ids[2:]]
    # the answers that the reference point is measured on are the very answers of the batch, each once, elsewhere
    answers = [sample.example.ids[2:] for sample in samples]
    shifted = [each.ids[2:] for each in mismatched(samples)]
    assert sorted(shifted) == sorted(answers)
    assert all(one != other for one, other in zip(answers, shifted, strict=True))


def test_a_mismatched_answer_ends_at_the_longest_that_is_allowed() -> None:
    long = Labelled(Example([*range(3, 13)], [IGNORED] * 8 + [11, 12], (), [0.0] * 8 + [2.0, 2.0]), True, 8)
    short = Labelled(Example([3, 4, 5, 6, 7, 8], [IGNORED, 4, 5, 6, 7, 8], (), [0.0] + [0.5] * 5), False, 1)
    first, second = mismatched([long, short], 10)
    assert first.ids == [*range(3, 11), 4, 5] and first.labels == [IGNORED] * 8 + [4, 5]
    assert first.weights == [0.0] * 8 + [0.5, 0.5]
    assert second.ids == [3, 11, 12] and second.weights == [0.0, 2.0, 2.0]
    assert [len(each.ids) for each in mismatched([long, short])] == [13, 3]


def test_steps_are_the_batches_in_order_from_any_step_on() -> None:
    examples = rows(*range(4, 27))
    made = list(steps(examples, 2, 2, 5, 0, 14, lambda samples: collate(samples, 0, "cpu")))
    assert len(made) == 14
    for number, step in enumerate(made):
        chosen = [[examples[index] for index in micro] for micro in micro_batches(number, 23, 2, 2, 5)]
        assert step.tokens == sum(len(each.ids) for micro in chosen for each in micro)
        assert step.trained == sum(each.trained for micro in chosen for each in micro)
        wanted = [collate(micro, 0, "cpu") for micro in chosen]
        assert all(
            torch.equal(batch[name], other[name])
            for batch, other in zip(step.batches, wanted, strict=True)
            for name in other
        )
    (again,) = steps(examples, 2, 2, 5, 9, 10, lambda samples: collate(samples, 0, "cpu"))
    assert torch.equal(again.batches[0]["input_ids"], made[9].batches[0]["input_ids"])
    pairs = [Pair(*rows(5, 7)), Pair(*rows(9, 3))]
    assert next(steps(pairs, 2, 1, 0, 0, 1, lambda samples: {})).tokens == 24


def test_a_steps_rows_of_like_length_are_side_by_side() -> None:
    """The same rows a step, once each an epoch, and less that is padded."""
    tokens = np.random.default_rng(0).integers(10, 500, 64)
    for number in range(4):
        plain, like = (micro_batches(number, 64, 4, 4, 3, known) for known in (None, tokens))
        (before, after) = (np.concatenate(made) for made in (plain, like))
        assert sorted(after) == sorted(before)
        assert [len(rows) for rows in like] == [4, 4, 4, 4]
        assert list(tokens[after]) == sorted(tokens[before], reverse=True)
        padding = [sum(4 * max(tokens[rows]) - sum(tokens[rows]) for rows in made) for made in (plain, like)]
        assert padding[1] < padding[0] / 2
    assert micro_batches(0, 64, 1, 4, 3, tokens) == micro_batches(0, 64, 1, 4, 3)  # nothing is padded


def test_what_is_compared_within_a_micro_batch_stays_in_it() -> None:
    """KTO's reference point is of the rows that stand side by side: their order is the seed's alone."""
    assert lengths([Labelled(each, True, 2) for each in rows(5, 9, 7)]) is None
    assert lengths([Pair(*rows(5, 7)), Pair(*rows(9, 3))]) == [12, 12]
    assert cut([1, 2, 3, 4, 5], 2, None) == [[1, 2], [3, 4], [5]]


def test_the_next_items_are_made_before_they_are_asked_for() -> None:
    made = list[int]()

    def numbers() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    with Prefetcher(numbers()) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # longer than a full queue waits for room
        assert made == [0, 1, 2, 3]  # one is used, two wait, one is in hand
        assert [next(items) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_what_a_prefetcher_meets_is_raised_in_its_turn() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("row 3")

    with Prefetcher(failing()) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match="row 3"):
            next(items)
        with pytest.raises(StopIteration):
            next(items)
    with Prefetcher(iter([1, 2, 3])) as items:
        assert list(items) == [1, 2, 3]
        assert list(items) == []


def test_a_closed_prefetcher_closes_what_it_reads_from() -> None:
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.set()

    with Prefetcher(numbers()) as items:
        next(items)
    assert closed.is_set()
    assert list(items) == []


def test_a_million_examples_have_an_order_that_is_made_once() -> None:
    batches.order.cache_clear()
    first = micro_batches(0, 1_000_000, 4, 2, 0)
    for step in range(1, 50):
        micro_batches(step, 1_000_000, 4, 2, 0)
    assert batches.order.cache_info().misses == 1
    assert first == micro_batches(0, 1_000_000, 4, 2, 0)
