"""Streaming: every row once an epoch in an order of seed, epoch and block, and exactly so again from any place."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
from planned import pack, questions, settings, spec, written

from factory.config.refusal import UserError
from factory.data import mix, prepare
from factory.data.batches import Prefetcher
from factory.data.dataset import IGNORED, Example, Labelled, Pair, Sample
from factory.data.prepare.workers import Workers
from factory.data.record import Kind
from factory.data.stream import Position, Stream
from factory.plan.plan import DataSource, held_out_rows


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))


def streamed(
    sources: dict[str, DataSource],
    kind: Kind = "messages",
    seed: int = 0,
    packs: dict[str, Any] | None = None,
    **plan: Any,
) -> Stream:
    packs = packs or {}
    plan = {"streaming": True, "shuffle_buffer": 16, **plan}
    return Stream(settings(sources, **plan), sources, pack(**packs), kind, seed, Workers(spec(kind, **packs), 1))


def texts(samples: list[Sample]) -> list[str]:
    """What is trained of each, as text without the end-of-turn token."""
    found = list[str]()
    for sample in samples:
        assert isinstance(sample, Example)
        ids = [label for label in sample.labels if label != IGNORED]
        found.append(tiny.tokenizer().decode(ids, skip_special_tokens=True))
    return found


def epoch(stream: Stream, number: int = 0) -> tuple[list[Sample], Position]:
    """All samples of an epoch, and the position after the last."""
    found, before = list[Sample](), Position()
    for sample, position in stream.samples():
        if before.epoch == number:
            found.append(sample)
        if position.epoch > number:
            return found, position
        before = position
    raise AssertionError("a stream has no end")


def outputs(rows: list[dict[str, Any]]) -> list[str]:
    return [row["output"] for row in rows]


def test_an_epoch_has_every_row_once_and_the_next_one_another_order(tmp_path: Path) -> None:
    rows = questions(50)
    source = written(tmp_path / "a.jsonl", rows)
    first, after = epoch(streamed({"a": source}))
    assert sorted(texts(first)) == sorted(outputs(rows)) != texts(first)
    assert after == Position(epoch=1, counts=after.counts)
    assert after.counts["rows"] == after.counts["used"] == after.counts["sequences"] == 50
    assert after.counts["tokens"] == sum(len(sample.ids) for sample in first if isinstance(sample, Example))
    assert after.counts["trained_tokens"] == sum(each.count for each in first if isinstance(each, Example))
    second, _ = epoch(streamed({"a": source}), 1)
    assert sorted(texts(second)) == sorted(texts(first)) and texts(second) != texts(first)
    assert texts(epoch(streamed({"a": source}))[0]) == texts(first)
    assert texts(epoch(streamed({"a": source}, seed=1))[0]) != texts(first)


def sources(tmp_path: Path, **changes: Any) -> dict[str, DataSource]:
    return {
        "a": written(tmp_path / "a.jsonl", questions(45), weight=2.0, **changes),
        "b": written(tmp_path / "b.jsonl", [*questions(20, first=100), {"instruction": "", "output": "?"}]),
    }


@pytest.mark.parametrize("mixing", ["concat", "interleave_under", "interleave_over"])
@pytest.mark.parametrize("packing", [True, False])
def test_from_any_place_the_very_same_follows(tmp_path: Path, mixing: str, packing: bool) -> None:
    packs = {"packing": packing, "isolate_documents": packing, "max_length": 128}
    plan: dict[str, Any] = {"packs": packs, "mixing": mixing, "validation_fraction": 0.2}
    found = sources(tmp_path)
    whole = list(islice(streamed(found, **plan).samples(), 40 if packing else 130))
    assert whole[-1][1].epoch >= 1
    for at in range(0, len(whole) - 6, 3):
        position = Position.from_json(json.loads(json.dumps(whole[at][1].as_json())))
        assert list(islice(streamed(found, **plan).samples(position), 5)) == whole[at + 1 : at + 6]


def test_steps_go_on_where_they_were_left(tmp_path: Path) -> None:
    found = sources(tmp_path)

    def steps(position: Position | None = None) -> Any:
        return streamed(found).steps(2, 3, lambda samples: {"texts": texts(samples)}, position)

    with Prefetcher(steps()) as ready:
        whole = list(islice(ready, 25))
    assert all([len(batch["texts"]) for batch in step.batches] == [2, 2, 2] for step in whole)
    assert whole[-1].position.epoch == 2
    for at in (0, 7, 11, 20):
        again = list(islice(steps(whole[at].position), 4))
        assert again == whole[at + 1 : at + 5]
        assert again[0].tokens > again[0].trained > 0


@pytest.mark.parametrize("mixing", ["concat", "interleave_under", "interleave_over"])
def test_sources_are_mixed_by_draws(tmp_path: Path, mixing: str) -> None:
    rows = {"a": questions(200), "b": questions(30, first=1000), "c": []}
    found = {
        "a": written(tmp_path / "a.jsonl", rows["a"], weight=3.0),
        "b": written(tmp_path / "b.jsonl", rows["b"]),
        "c": written(tmp_path / "c.jsonl", rows["c"]),
    }
    samples, after = epoch(streamed(found, mixing=mixing))
    times = {text: texts(samples).count(text) for text in outputs([*rows["a"], *rows["b"]])}
    of = {name: [times[text] for text in outputs(rows[name])] for name in ("a", "b")}
    if mixing == "concat":
        assert set(times.values()) == {1}
    elif mixing == "interleave_under":
        assert set(of["b"]) == {1} and 45 < sum(of["a"]) < 150
    else:
        assert set(of["a"]) == {1} and 30 < sum(of["b"]) < 110
        assert max(of["b"]) - min(of["b"]) <= 1
    assert after.counts["rows"] == len(samples)
    # both are there from the beginning
    start = texts(samples)[:16]
    assert 0 < sum(text in outputs(rows["b"]) for text in start) < 16


def test_rows_that_are_held_out_are_never_trained(tmp_path: Path) -> None:
    rows = questions(60)
    rows[40:44] = rows[:4]  # again, in another block, under another id
    source = written(tmp_path / "a.jsonl", [row | {"id": number} for number, row in enumerate(rows)])
    stream = streamed({"a": source}, validation_fraction=0.25, shuffle_buffer=20)
    held = texts(stream.validation)
    assert len(held) == held_out_rows(20, 0.25) == 5
    assert set(held) < set(outputs(rows[:20]))
    ranks = mix.ranks(mix.words([mix.digest(row) for row in rows[:20]]), 0, "hold out")
    assert set(held) == {rows[at]["output"] for at in ranks.argsort()[:5].tolist()}
    for number in (0, 1):
        trained, after = epoch(streamed({"a": source}, validation_fraction=0.25, shuffle_buffer=20), number)
        assert set(texts(trained)) == set(outputs(rows)) - set(held)
        counts = after.counts
        assert counts["rows"] == counts["used"] + counts["validation"] == 60 * (number + 1)


@pytest.mark.parametrize("kind", ["messages", "text"])
def test_what_is_held_out_is_not_packed(kind: Kind, tmp_path: Path) -> None:
    """Each row is a context of its own, as without streaming: also a text that training cuts."""
    rows = questions(20) if kind == "messages" else [{"text": f"{at} bottles " * (at + 1)} for at in range(20)]
    source = written(tmp_path / "a.jsonl", rows, format="alpaca" if kind == "messages" else "text")
    plan: dict[str, Any] = {"validation_fraction": 0.5, "shuffle_buffer": 20}
    packs = {"isolate_documents": kind == "messages", "max_length": 128}
    stream = streamed({"a": source}, kind, packs={"packing": True, **packs}, **plan)
    alone = streamed({"a": source}, kind, packs={"packing": False, **packs, "max_length": 10_000}, **plan)
    assert stream.validation == alone.validation and len(stream.validation) == held_out_rows(20, 0.5)
    assert len(epoch(stream)[0]) < 20 - len(stream.validation)


def test_a_source_can_be_held_out_whole(tmp_path: Path) -> None:
    found = {"a": written(tmp_path / "a.jsonl", questions(30)), "b": written(tmp_path / "b.jsonl", questions(5, 3))}
    plan = settings(found, validation="b", streaming=True, shuffle_buffer=8)
    made = spec()
    with Workers(made, 1) as workers:
        held = prepare.prepare_source("b", found["b"], made, workers, at_most=None, seed=0)
        trained, _ = epoch(Stream(plan, found, pack(), "messages", 0, workers, held))
    assert sorted(texts(trained)) == sorted(outputs([*questions(3), *questions(22, 8)]))


def test_what_is_dropped_is_counted_on_through_a_resume(tmp_path: Path) -> None:
    rows = [*questions(30), {"instruction": "What?", "output": 3}, {"instruction": "a " * 200, "output": "b"}] * 2
    source = written(tmp_path / "a.jsonl", rows)
    stream = streamed({"a": source})
    positions = [position for _, position in islice(stream.samples(), 60)]
    counts = positions[-1].counts
    assert counts["dropped"] == {
        "output is not a text": {"count": 2, "first": [31, 63]},
        "longer than max_length": {"count": 2, "first": [32, 64]},
    }
    assert counts["rows"] == 64 == counts["used"] + 4
    resumed = [position for _, position in islice(streamed({"a": source}).samples(positions[37]), 22)]
    assert resumed[-1] == positions[-1]


def test_cuts_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "Count", "output": "one " * number} for number in (5, 90)]
    _, after = epoch(streamed({"a": written(tmp_path / "a.jsonl", rows)}, packs={"truncation": "right"}))
    assert after.counts["truncated"] == after.counts["open_ended"] == 1
    assert after.counts["cut_tokens"] > 20


def test_samples_are_the_first_rows(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", questions(50), max_samples=20)
    assert sorted(texts(epoch(streamed({"a": source}))[0])) == sorted(outputs(questions(20)))
    source = written(tmp_path / "a.jsonl", questions(50))
    assert sorted(texts(epoch(streamed({"a": source}, max_samples=35))[0])) == sorted(outputs(questions(35)))


def test_text_pairs_and_labels_stream_too(tmp_path: Path) -> None:
    rows = [{"text": f"{number} bottles " * (number % 9 + 1)} for number in range(40)]
    source = written(tmp_path / "text.jsonl", rows, format="text")
    found, after = epoch(streamed({"a": source}, "text", packs={"packing": True, "max_length": 40}))
    assert after.counts["tokens"] == sum(
        len(ids) + 1 for ids in tiny.tokenizer()([row["text"] for row in rows])["input_ids"]
    )
    assert sum(isinstance(sample, Example) and len(sample.ids) == 40 for sample in found) >= len(found) - 6
    pairs = [{"prompt": f"Say {number}", "chosen": "yes", "rejected": "no"} for number in range(20)]
    found, _ = epoch(streamed({"a": written(tmp_path / "pairs.jsonl", pairs, format="pairs")}, "pairs"))
    assert len(found) == 20 and all(isinstance(sample, Pair) for sample in found)
    labels = [{"prompt": f"Say {number}", "completion": "yes", "label": number > 4} for number in range(20)]
    found, _ = epoch(streamed({"a": written(tmp_path / "kto.jsonl", labels, format="kto")}, "labelled"))
    assert sum(isinstance(sample, Labelled) and sample.label for sample in found) == 15


def test_a_stream_of_nothing_is_refused(tmp_path: Path) -> None:
    empty = written(tmp_path / "a.jsonl", [])
    long = written(tmp_path / "b.jsonl", [{"instruction": "a " * 200, "output": "b"}] * 40)
    wrong = written(tmp_path / "c.jsonl", [*questions(5), *[{"instruction": "What?", "output": 3}] * 11])
    few = written(tmp_path / "d.jsonl", [*questions(4), *[{"instruction": "What?", "output": 3}] * 5])
    found = ((empty, "nothing-to-train"), (long, "nothing-to-train"), (wrong, "rows-broken"), (few, "rows-broken"))
    for source, rule in found:
        with pytest.raises(UserError) as error:
            next(streamed({"a": source}).samples())
        (refusal,) = error.value.refusals
        assert refusal.rule == rule
        assert ("data.max_length" in refusal.fix and "model.template" in refusal.fix) == (rule == "nothing-to-train")
