"""The row in which the answers of pairs share their prompts, said by hand and asked of its mask token by token."""

import numpy as np
import pytest
import torch

from factory.attention.mask import Spans, spans
from factory.data.batches import collate, read
from factory.data.dataset import IGNORED, TRAINED_AT, Example, Pair


def side(prompt: int, *ids: int) -> Example:
    return Example(list(ids), [IGNORED] * prompt + list(ids[prompt:]))


PAIRS = [
    Pair(side(3, 11, 12, 13, 14, 15), side(3, 11, 12, 13, 14, 26, 27)),  # the answers begin alike too
    Pair(side(1, 31, 32, 33), side(1, 31, 32)),  # one is how the other begins
    Pair(side(1, 41, 42), side(1, 51, 52)),  # nothing in common
]


def test_what_is_in_common_is_there_once() -> None:
    batch = collate(PAIRS, 0, "cpu", padding_free=True)
    assert read(batch).tolist() == [[11, 12, 13, 14, 15, 26, 27, 31, 32, 33, 41, 42, 51, 52, 0, 0]]
    assert batch["shared_positions"].tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 1, 2, 0, 1, 0, 1, 0, 1]]
    plain = collate(PAIRS, 0, "cpu")
    assert plain.keys() == {"input_ids", "labels", TRAINED_AT}
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert torch.equal(read(plain), plain["input_ids"])


def test_each_token_of_a_row_is_found() -> None:
    batch = collate(PAIRS, 0, "cpu", padding_free=True)
    found = read(batch)[0][batch["places"]]
    sides = [pair.chosen for pair in PAIRS] + [pair.rejected for pair in PAIRS]
    assert batch["places"].shape == batch["input_ids"].shape
    for row, each in zip(found.tolist(), sides, strict=True):
        assert row[: len(each.ids)] == each.ids


def test_a_token_sees_its_own_row_up_to_itself() -> None:
    batch = collate(PAIRS, 0, "cpu", padding_free=True)
    (seen,) = Spans(batch["shared_spans"]).full()[0]
    for places, each in zip(batch["places"], [*(p.chosen for p in PAIRS), *(p.rejected for p in PAIRS)], strict=True):
        own = places[: len(each.ids)].tolist()
        for at, place in enumerate(own):
            assert np.flatnonzero(seen[place]).tolist() == own[: at + 1]
    assert seen[14:].nonzero().tolist() == [[0, 14], [1, 14], [1, 15]]  # padding sees padding


def test_layers_are_given_one_mask_that_goes_with_its_batch() -> None:
    given = collate(PAIRS, 0, "cpu", padding_free=True)["shared_spans"]
    kept = len(spans.__globals__["_spans"])
    assert spans(given) is spans(given) is not None
    assert len(spans.__globals__["_spans"]) == kept + 1
    del given
    assert len(spans.__globals__["_spans"]) == kept
    assert spans(torch.ones(1, 1, 4, 4, dtype=torch.bool)) is None


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_is_no_longer_than_its_tokens(count: int) -> None:
    pairs = [Pair(side(2, *range(3, 20)), side(2, *range(3, 10), *range(50, 60)))] * count
    assert read(collate(pairs, 0, "cpu", padding_free=True)).shape == (1, -(-27 * count // 8) * 8)
