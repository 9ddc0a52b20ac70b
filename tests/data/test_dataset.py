"""The data set: what the encoder made, packed or not, and counts that reading every sequence confirms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import pack, questions, settings, spec, written

from factory.data import formats, mix, packing, prepare
from factory.data.dataset import IGNORED, Dataset, Example, Labelled, Pair, dataset, example
from factory.data.encoding import EncodedRow, Tokens
from factory.data.prepare.store import Side
from factory.data.record import Kind
from factory.plan.plan import DataSource


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def made(sources: dict[str, DataSource], kind: Kind = "messages", rows: Any = None, **changes: Any) -> Dataset:
    plan = settings(sources)
    found = prepare.prepare(plan, sources, spec(kind, **changes), 0, 1)
    if rows is None:
        rows = mix.mix({name: each.digests for name, each in found.items()}, plan, 0).train
    return dataset(found, np.asarray(rows), pack(**changes), kind)


def encoded(rows: list[dict[str, Any]], format: str, kind: Kind, **changes: Any) -> list[EncodedRow]:
    found = spec(kind, **changes).encoder.encode([formats.align(row, format, {}, {}) for row in rows])
    assert all(isinstance(row, EncodedRow) for row in found)
    return found  # type: ignore[return-value]


def labels(tokens: Tokens) -> list[int]:
    found = [IGNORED] * len(tokens.ids)
    for start, end, _ in tokens.spans:
        found[start:end] = tokens.ids[start:end]
    return found


def whole(tokens: Tokens) -> Example:
    return Example(tokens.ids, labels(tokens), asked=tokens.asked, prompt=tokens.prompt)


def counted(data: Dataset) -> tuple[int, int]:
    """Tokens and trained tokens, by reading everything."""
    examples = list[Example]()
    for number in range(len(data)):
        sample = data[number]
        if isinstance(sample, Pair):
            examples += [sample.chosen, sample.rejected]
        else:
            examples.append(sample.example if isinstance(sample, Labelled) else sample)
    return sum(len(each.ids) for each in examples), sum(each.count for each in examples)


def checked(data: Dataset) -> dict[str, int]:
    counts = data.counts()
    assert (counts["tokens"], counts["trained_tokens"]) == counted(data)
    return counts


def test_rows_of_several_sources_are_examples_in_the_order_that_is_asked(tmp_path: Path) -> None:
    first, second = questions(5), questions(4, first=100)
    sources = {"a": written(tmp_path / "a.jsonl", first), "b": written(tmp_path / "b.jsonl", second)}
    order = [8, 0, 3, 3, 6]
    data = made(sources, rows=order)
    assert len(data) == 5
    rows = encoded([*first, *second], "alpaca", "messages")
    for number, row in enumerate(order):
        assert data[number] == whole(rows[row].tokens)
    places = {0: ("b", 3), 1: ("a", 0), 4: ("b", 1)}
    assert all(data.pieces(number) == [(*place, len(data[number].ids))] for number, place in places.items())  # type: ignore[union-attr]
    assert data.lengths.tolist() == [len(rows[row].tokens.ids) for row in order]
    checked(data)
    for number in (-1, 5):
        with pytest.raises(IndexError):
            data[number]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("train_on_prompt", [True, False])
def test_packed_rows_lie_side_by_side(tmp_path: Path, isolate: bool, train_on_prompt: bool) -> None:
    rows = questions(40)
    changes = {"packing": True, "isolate_documents": isolate, "train_on_prompt": train_on_prompt, "max_length": 128}
    data = made({"a": written(tmp_path / "a.jsonl", rows)}, **changes)
    alone = encoded(rows, "alpaca", "messages", **changes)
    assert len(data) < 20
    seen = list[int]()
    for number in range(len(data)):
        sample = data[number]
        assert isinstance(sample, Example) and len(sample.ids) <= 128
        members = [row for _, row, _ in data.pieces(number)]
        assert [size for *_, size in data.pieces(number)] == [len(alone[row].tokens.ids) for row in members]
        seen += members
        assert sample.ids == [token for row in members for token in alone[row].tokens.ids]
        wanted = [labels(alone[row].tokens) for row in members]
        if isolate:  # a document's first token is predicted by nothing of its own
            wanted = [[IGNORED, *label[1:]] for label in wanted]
            assert sample.documents == tuple(len(alone[row].tokens.ids) for row in members)
        else:
            assert sample.documents == ()
        assert sample.labels == [label for each in wanted for label in each]
    assert sorted(seen) == list(range(40))
    counts = checked(data)
    assert counts["tokens"] == sum(len(row.tokens.ids) for row in alone)


@pytest.mark.parametrize("isolate", [True, False])
def test_documents_are_cut_without_a_loss(tmp_path: Path, isolate: bool) -> None:
    rows = [{"text": f"{number} bottles " * (1 + 7 * number % 40)} for number in range(30)]
    changes = {"packing": True, "isolate_documents": isolate, "max_length": 50}
    data = made({"a": written(tmp_path / "a.jsonl", rows, format="text")}, "text", **changes)
    everything = [token for row in encoded(rows, "text", "text", **changes) for token in row.tokens.ids]
    samples = [data[number] for number in range(len(data))]
    assert [token for sample in samples if isinstance(sample, Example) for token in sample.ids] == everything
    assert all(length == 50 for length in data.lengths[:-2])
    checked(data)
    for sample in samples:
        assert isinstance(sample, Example)
        starts = np.cumsum((0, *sample.documents[:-1])).tolist() if isolate else []
        assert [at for at, label in enumerate(sample.labels) if label == IGNORED] == starts
        assert all(label in (IGNORED, token) for label, token in zip(sample.labels, sample.ids, strict=True))


def test_how_rows_are_packed_is_kept(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "a.jsonl", questions(40))
    before = made({"a": source}, packing=True)

    def never(*_: Any) -> Any:
        raise AssertionError("it is in the cache")

    never.__name__ = "best_fit"
    with monkeypatch.context() as patched:
        patched.setattr(packing, "best_fit", never)
        after = made({"a": source}, packing=True)
    assert [before[number] for number in range(len(before))] == [after[number] for number in range(len(after))]
    fewer = made({"a": source}, packing=True, rows=range(20))
    assert len(fewer) < len(before)
    assert len(list(kept.glob("pieces-*.npz"))) == 2
    assert not list(kept.glob(".pieces*"))


def test_pairs_share_their_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {number}", "chosen": "yes " * number, "rejected": "no"} for number in range(1, 6)]
    data = made({"a": written(tmp_path / "a.jsonl", rows, format="pairs")}, "pairs")
    for number, row in enumerate(encoded(rows, "pairs", "pairs")):
        sample = data[number]
        assert isinstance(sample, Pair) and row.rejected is not None
        assert sample.chosen == whole(row.tokens)
        assert sample.rejected == whole(row.rejected)
        start = row.tokens.spans[0][0]
        assert sample.chosen.ids[:start] == sample.rejected.ids[:start]
    checked(data)


def test_a_label_belongs_to_the_answer_after_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {number}", "completion": "yes " * number, "label": number > 2} for number in range(1, 6)]
    data = made({"a": written(tmp_path / "a.jsonl", rows, format="kto")}, "labelled")
    for number, row in enumerate(encoded(rows, "kto", "labelled")):
        sample = data[number]
        assert isinstance(sample, Labelled)
        assert sample == Labelled(whole(row.tokens), number > 1, row.tokens.spans[0][0])
    checked(data)


def test_weights_reach_the_examples(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "hm"} for role in ("user", "assistant") * 3]
    heavy = [turn | ({"weight": number / 2} if number % 2 else {}) for number, turn in enumerate(turns)]
    data = made({"a": written(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": heavy}], format="messages")})
    plain, weighted = data[0], data[1]
    assert isinstance(plain, Example) and isinstance(weighted, Example)
    assert plain.weights is None and weighted.weights is not None
    assert weighted.labels == plain.labels
    answer = plain.trained / 3
    assert weighted.trained == pytest.approx(answer * (0.5 + 1.5 + 2.5))
    assert all(
        (weight > 0) == (label != IGNORED) for weight, label in zip(weighted.weights, weighted.labels, strict=True)
    )
    checked(data)


def test_truncation_is_counted_by_rows_however_often_they_are_trained(tmp_path: Path) -> None:
    rows = [{"instruction": "Count", "output": "one " * number} for number in (5, 50, 90)]
    data = made({"a": written(tmp_path / "a.jsonl", rows)}, rows=[0, 1, 1, 2], truncation="right")
    long = [len(row.tokens.ids) for row in encoded(rows, "alpaca", "messages", max_length=1000)]
    counts = checked(data)
    assert counts["truncated"] == counts["open_ended"] == sum(length > 64 for length in long) > 0
    assert counts["cut_tokens"] == sum(max(0, length - 64) for length in long)


def test_nothing_is_no_sequence(tmp_path: Path) -> None:
    data = made({"a": written(tmp_path / "a.jsonl", questions(3))}, rows=np.zeros(0, np.int64), packing=True)
    assert len(data) == 0
    assert data.counts()["tokens"] == 0


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0])), max_size=3)
pieces = st.lists(st.tuples(st.integers(1, 12), spans, st.integers(0, 11), st.integers(1, 12)), min_size=1, max_size=3)


@given(pieces, st.booleans())
def test_an_example_is_what_its_pieces_say_token_by_token(parts: Any, isolate: bool) -> None:
    made, wanted = [], []
    for number, (size, found, start, length) in enumerate(parts):
        ids = np.arange(100 * number, 100 * number + size, dtype=np.int32)
        marks, at = [], 0
        for gap, width, weight in found:  # apart from each other, as an encoder gives them
            marks.append((at + gap, at + gap + width, weight))
            at += gap + width
        marks = [(first, min(last, size), weight) for first, last, weight in marks if first < size]
        start = min(start, size - 1)
        stop = min(start + length, size)
        side = Side(
            ids,
            np.array([span[:2] for span in marks], np.int32).reshape(-1, 2),
            np.array([span[2] for span in marks], np.float32),
        )
        made.append((side, start, stop))
        for place in range(start, stop):
            weight = max((weight for first, last, weight in marks if first <= place < last), default=0.0)
            if isolate and place == start:
                weight = 0.0
            wanted.append((int(ids[place]), int(ids[place]) if weight else IGNORED, weight))
    sample = example(made, isolate=isolate)
    assert list(zip(sample.ids, sample.labels, strict=True)) == [token[:2] for token in wanted]
    weights = [token[2] for token in wanted]
    assert (sample.weights or [float(weight > 0) for weight in weights]) == weights
    assert (sample.weights is None) == all(weight in (0, 1) for weight in weights)
    assert sample.documents == (tuple(stop - start for _, start, stop in made) if isolate else ())
    assert sample.trained == sum(weights[1:])
