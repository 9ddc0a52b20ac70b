"""Mixing: by digest and seed, equal rows together, and the counts of datasets.interleave_datasets."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import planned, settings

from factory.data import mix
from factory.plan.plan import held_out_rows


def digests(*texts: Any) -> mix.Ranks:
    return mix.words([mix.digest({"text": text}) for text in texts])


def mixed(sizes: dict[str, int], seed: int = 0, **changes: Any) -> mix.Mixed:
    """Of sources whose rows all differ. `changes` of the form `name__key` are the source's own."""
    own = {name: {} for name in sizes}
    for key in [key for key in changes if "__" in key]:
        name, setting = key.split("__")
        own[name][setting] = changes.pop(key)
    found = {name: digests(*((name, row) for row in range(size))) for name, size in sizes.items()}
    return mix.mix(found, settings({name: planned(**own[name]) for name in sizes}, **changes), seed)


def accounted(found: mix.Mixed, rows: int) -> bool:
    assert found.used == len(set(found.train.tolist()))
    assert not {*found.train.tolist()} & {*found.validation.tolist()}
    return found.used + len(found.validation) + found.not_sampled + found.contained == rows


def test_a_digest_is_of_what_the_row_says() -> None:
    assert mix.digest({"a": 1, "b": [2, {"d": 3, "c": 4}]}) == mix.digest({"b": [2, {"c": 4, "d": 3}], "a": 1})
    rows: list[dict[Any, Any]] = [
        {"a": 1},
        {"a": "1"},
        {"a": None},
        {"b": 1},
        {"a": b"1"},
        {"a": "\ud800"},
        {1: 2, "a": 3},
        {(1, 2): 3},
    ]
    assert len({mix.digest(row) for row in rows}) == len(rows)


def test_ranks_are_of_seed_and_purpose_and_spread_evenly() -> None:
    found = digests(*range(20_000))
    ranks = mix.ranks(found, 3, "sample")
    assert (ranks == mix.ranks(found, 3, "sample")).all()
    assert len(np.unique(ranks)) == len(ranks)
    others = (mix.ranks(found, 4, "sample"), mix.ranks(found, 3, "hold out"), found[:, 0], found[:, 1])
    for other in others:  # no part of one order is seen in another
        assert abs(np.corrcoef(ranks.astype(float), other.astype(float))[0, 1]) < 0.03
    shares = np.histogram(ranks.astype(float) / 2**64, bins=20, range=(0, 1))[0] / len(ranks)
    assert abs(shares - 0.05).max() < 0.01


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 80))
def test_every_row_is_accounted_for(first: int, second: int, fraction: float, most: int) -> None:
    for mixing in ("concat", "interleave_under", "interleave_over"):
        found = mixed({"a": first, "b": second}, mixing=mixing, validation_fraction=fraction, max_samples=most)
        assert accounted(found, first + second)
        kept = min(most, first + second)
        assert len(found.validation) == held_out_rows(kept, fraction)
        if mixing == "concat":
            assert found.used == len(found.train) == kept - len(found.validation)


def test_samples_are_drawn_by_digest_of_each_source_and_of_all() -> None:
    found = mixed({"a": 1000, "b": 500}, a__max_samples=100)
    ours = found.train[found.train < 1000]
    assert len(ours) == 100 and len(found.train) == 600
    assert 300 < ours.mean() < 700  # not the first
    assert (np.diff(found.train) > 0).all()
    both = mixed({"a": 1000, "b": 500}, max_samples=300)
    assert 60 < (both.train >= 1000).sum() < 140  # a third, as of all rows
    assert accounted(both, 1500)
    again, other = mixed({"a": 1000}, max_samples=300, seed=1), mixed({"a": 1000}, max_samples=300, seed=2)
    assert set(again.train.tolist()) != set(other.train.tolist())
    # fewer are a part of more: a trial on some rows is a part of the whole
    fewer = mixed({"a": 1000}, max_samples=100, seed=1)
    assert set(fewer.train.tolist()) < set(again.train.tolist())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 9))
def test_equal_rows_are_on_the_same_side(texts: list[int], seed: int) -> None:
    plan = settings({"a": planned()}, validation_fraction=0.3)
    found = mix.mix({"a": digests(*texts)}, plan, seed)
    sides = [{texts[row] for row in part.tolist()} for part in (found.train, found.validation)]
    assert not sides[0] & sides[1]
    assert len(found.train) + len(found.validation) == len(texts)
    assert len(found.validation) <= held_out_rows(len(texts), 0.3)


def test_the_split_is_stable_under_adding_rows() -> None:
    plan = settings({"a": planned()}, validation_fraction=0.1)
    before, after = digests(*range(1000)), digests(*range(-50, 1000))
    held = set(mix.mix({"a": before}, plan, 0).validation.tolist())
    still = {row - 50 for row in mix.mix({"a": after}, plan, 0).validation.tolist()}
    assert len(held) == 100 and len(held & still) > 90
    # the order of the file means nothing
    turned = mix.mix({"a": before[::-1]}, plan, 0).validation
    assert {999 - row for row in turned.tolist()} == held


def test_a_source_is_held_out_whole_and_its_rows_are_trained_nowhere() -> None:
    train, held = digests("x", "y", "z", "y", "w"), digests("y", "v")
    plan = settings({"a": planned(), "b": planned()}, validation="b", validation_fraction=0.5, max_samples=2)
    found = mix.mix({"a": train, "b": held}, plan, 0)
    assert found.validation.tolist() == [5, 6]
    assert found.contained == 2 and found.used == 2 and found.not_sampled == 1
    assert set(found.train.tolist()) < {0, 2, 4}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.5])
def test_a_weight_repeats_rows(weight: float) -> None:
    found = mixed({"a": 100, "b": 10}, a__weight=weight)
    times = np.bincount(found.train, minlength=110)
    assert (times[100:] == 1).all()
    assert times[:100].sum() == round(weight * 100)
    assert set(times[:100].tolist()) <= {int(weight), int(weight) + 1}
    assert accounted(found, 110)


@pytest.mark.parametrize("mixing", ["interleave_under", "interleave_over"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 3.0, 1.0)])
def test_interleaving_draws_as_datasets_does(mixing: str, weights: tuple[float, ...]) -> None:
    datasets = pytest.importorskip("datasets")
    sizes = {"a": 300, "b": 2000, "c": 40}
    sets = [datasets.Dataset.from_dict({"from": [name] * size}) for name, size in sizes.items()]
    theirs = datasets.interleave_datasets(
        sets,
        probabilities=[weight / sum(weights) for weight in weights],
        seed=7,
        stopping_strategy="first_exhausted" if mixing == "interleave_under" else "all_exhausted",
    )["from"]
    own = {f"{name}__weight": weight for name, weight in zip(sizes, weights, strict=True)}
    found = mixed(sizes, seed=7, mixing=mixing, **own)
    starts = np.cumsum([0, *sizes.values()])
    ours = [list(sizes)[number] for number in np.searchsorted(starts, found.train, side="right") - 1]
    assert ours == list(theirs)
    assert accounted(found, sum(sizes.values()))
    times = np.bincount(found.train, minlength=starts[-1])
    for start, end in pairwise(starts):  # a source starts anew only when all its rows had a turn
        assert times[start:end].max() - times[start:end].min() <= 1
    if mixing == "interleave_over":
        assert times.min() == 1
