"""Sequences to tokens with their texts: nothing added, nothing lost, and trained where the labels say so."""

import json
from itertools import chain

import made_samples as made
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.data.dataset import IGNORED, Example, Labelled, Pair
from factory.preview import samples
from factory.preview.words import described

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_the_tokens_are_the_sequence_and_their_texts_its_text(question: str, answer: str) -> None:
    found = made.example(answer, question=f"{made.QUESTION}{question}")
    side = made.sample(found).sides[0]
    assert list(chain.from_iterable(token.ids for token in side.tokens)) == found.ids
    assert "".join(token.text for token in side.tokens) == side.text == tiny.tokenizer().decode(found.ids)
    assert side.trained == found.trained


def test_trained_tokens_spell_the_answer_and_its_end() -> None:
    side = made.sample(made.example("Red, 红 and 👩‍👧.")).sides[0]
    assert "".join(token.text for token in side.tokens if token.trained) == "Red, 红 and 👩‍👧.<|im_end|>"


def test_a_character_of_several_tokens_is_one() -> None:
    side = made.sample(made.example("红")).sides[0]
    (token,) = [token for token in side.tokens if token.text == "红"]
    assert len(token.ids) > 1


def test_a_character_whose_tokens_differ_in_training_is_not_joined() -> None:
    split = made.ids("红")
    found = Example([*made.ids("a"), *split], [IGNORED, IGNORED, *split[1:]])
    shown = made.sample(found).sides[0].tokens
    assert [token.trained for token in shown] == [False, False, *[True] * (len(shown) - 2)]
    assert list(chain.from_iterable(token.ids for token in shown)) == found.ids


def test_the_first_token_of_a_sequence_is_predicted_by_nothing() -> None:
    found = made.ids("all of it")
    side = made.sample(Example(found, found)).sides[0]
    assert [token.trained for token in side.tokens] == [False] + [True] * (len(side.tokens) - 1)


def test_a_run_of_the_same_special_token_is_one() -> None:
    (pad,) = made.ids("<|endoftext|>")
    side = made.sample(Example([pad] * 9, [IGNORED] * 9)).sides[0]
    assert [(token.ids, token.text, token.special) for token in side.tokens] == [((pad,) * 9, "<|endoftext|>", True)]


def test_a_run_ends_where_a_document_does() -> None:
    (pad,) = made.ids("<|endoftext|>")
    shown = made.sample(Example([pad] * 9, [IGNORED] * 9, (4, 5)), 1, 2)
    assert [len(token.ids) for token in shown.sides[0].tokens] == [4, 5]
    assert {at: origin.row for at, origin in shown.borders.items()} == {4: 2}


def test_weights_are_those_of_the_tokens() -> None:
    shown = made.sample(made.example("Red.", weight=0.5)).sides[0].tokens
    assert {token.weight for token in shown if token.trained} == {0.5}
    assert {token.weight for token in shown if not token.trained} == {0.0}
    assert not any(token.trained for token in made.sample(made.example("Red.", weight=0.0)).sides[0].tokens)


def test_the_json_of_each_kind() -> None:
    plain, better, worse = (made.example(text) for text in ("Red.", "Blue.", "No."))
    found = made.preview(
        made.sample(plain, 3), made.sample(Pair(better, worse)), made.sample(Labelled(plain, False, 5))
    )
    tree = json.loads(json.dumps(samples.to_json(found)))
    assert tree["data"]["rows"] == sum(tree["data"][name] for name in ("used", "validation", "not_sampled")) + sum(
        tree["data"]["dropped"].values()
    )
    first, pair, labelled = tree["samples"]
    assert (first["input_ids"], first["labels"]) == (plain.ids, plain.labels)
    assert first["text"] == tiny.tokenizer().decode(plain.ids)
    assert first["documents"] == [{"source": "set", "row": 3, "tokens": len(plain.ids)}]
    assert (pair["chosen_input_ids"], pair["rejected_input_ids"]) == (better.ids, worse.ids)
    assert (pair["chosen_labels"], pair["rejected_labels"]) == (better.labels, worse.labels)
    assert pair["rejected_text"].endswith("No.<|im_end|>\n")
    assert "input_ids" not in pair
    assert labelled["label"] is False
    assert tree["dropped_rows"] == [{"source": "set", "reason": "no \x1b[2J<i>answer</i>", "count": 5, "first": [3, 4]}]


@given(st.lists(st.integers(1, 100_000), min_size=1))
def test_the_bins_hold_every_row_and_leave_no_gap(found: list[int]) -> None:
    lengths = samples.lengths(found, 1024)
    assert lengths is not None
    assert sum(each.rows for each in lengths.bins) == len(found)
    assert len(lengths.bins) <= 12
    assert all(after.low == before.high + 1 for before, after in zip(lengths.bins, lengths.bins[1:], strict=False))
    assert lengths.bins[0].low <= min(found) <= lengths.bins[0].high
    assert lengths.bins[-1].low <= max(found) <= lengths.bins[-1].high


def test_the_figures_of_the_lengths() -> None:
    lengths = samples.lengths([10, 12, 31, 40], 64)
    assert lengths is not None
    assert (lengths.shortest, lengths.median, lengths.mean, lengths.longest) == (10, 21.5, pytest.approx(23.25), 40)
    assert described(lengths) == "10 to 40 tokens a row, median 21.5, mean 23.2"
    assert samples.lengths([], 64) is None


def test_a_large_median_keeps_its_digits() -> None:
    lengths = samples.lengths([2, 22_388_057], 1024)
    assert lengths is not None
    assert "median 11,194,029.5," in described(lengths)
