"""Against the normal approximation, and sacrebleu's own paired bootstrap."""

from math import exp, inf, nan, sqrt

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from factory.metrics.bootstrap import difference
from factory.metrics.text import score


def means(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, np.ones_like(rows)], 1)


def mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def test_a_means_interval_is_the_normal_one() -> None:
    draws = np.random.default_rng(1)
    first = draws.normal(0, 5, 2000)
    second = first + draws.normal(0.1, 1, 2000)  # paired: what both share says nothing about the difference
    found = difference(means(first), means(second), mean, samples=4000)
    apart = second - first
    half = 1.96 * apart.std() / sqrt(len(apart))
    assert found.value == pytest.approx(apart.mean())
    assert found.low == pytest.approx(apart.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(apart.mean() + half, abs=0.15 * half)
    assert found.sure


def test_equal_runs_do_not_differ_and_noise_is_not_sure() -> None:
    draws = np.random.default_rng(2)
    rows, other = means(draws.normal(size=50)), means(draws.normal(size=50))
    assert difference(rows, rows, mean).value == 0 and not difference(rows, rows, mean).sure
    assert not difference(rows, other, mean).sure


@pytest.mark.parametrize("drawn", [inf, nan])
def test_what_is_no_number_makes_nothing_sure(drawn: float) -> None:
    rows = means(np.random.default_rng(2).normal(size=50))
    found = difference(rows, rows + 9, lambda sums: drawn if sums[0] > mean(sums) else 1e308)
    assert (found.low, found.high, found.sure) == (-inf, inf, False)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws, held = np.random.default_rng(3), 0
    for _ in range(200):
        first, second = draws.normal(0, 1, 100), draws.normal(0.3, 1, 100)
        found = difference(means(first), means(second), mean, samples=300, confidence=0.9)
        held += found.low <= 0.3 <= found.high
    assert 0.82 < held / 200 < 0.97


def test_perplexity_is_a_metric_of_sums_too() -> None:
    tokens = np.array([10.0, 20, 30, 40])
    first, second = np.stack([2.0 * tokens, tokens], 1), np.stack([1.5 * tokens, tokens], 1)
    found = difference(first, second, lambda sums: exp(sums[0] / sums[1]))
    assert found.value == pytest.approx(exp(1.5) - exp(2)) and found.sure
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)


def test_bleus_interval_is_as_wide_as_sacrebleus() -> None:
    """Its test gives half the interval of a system: that of the difference, where the other system is always right."""
    draws, words = np.random.default_rng(4), list("abcdefghij")
    references = [" ".join(draws.choice(words, 12)) for _ in range(120)]
    answers = [" ".join(w if draws.random() < 0.7 else "z" for w in each.split()) for each in references]
    right, made = score(references, references)["bleu4"], score(answers, references)["bleu4"]
    found = difference(right.statistics, made.statistics, made.of, samples=1000)
    named = [("baseline", references), ("other", answers)]
    test = PairedTest(named, {"BLEU": BLEU(references=[references])}, None, test_type="bs", n_samples=1000)
    _, results = test()
    theirs = results["BLEU"][1]
    assert found.value == pytest.approx(theirs.score - 100)
    assert found.high - found.low == pytest.approx(2 * theirs.ci, rel=0.15)
