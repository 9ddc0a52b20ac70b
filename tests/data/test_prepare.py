"""Preparing: each row once and counted, made once, whole or not at all, and the same in any number of processes."""

import dataclasses
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny
from planned import pack, planned, questions, settings, spec, written

from factory.config.refusal import UserError
from factory.data import formats, mix, prepare, read
from factory.data.encoding import EncoderSpec
from factory.data.prepare import Prepared, aligning_of, store, workers
from factory.data.prepare.workers import Workers
from factory.data.record import BadRow
from factory.plan.plan import DataSource

BAD: dict[str, Any] = {"instruction": "What?", "output": 3}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def prepared(source: DataSource, made: EncoderSpec | None = None, **changes: Any) -> Prepared:
    given: dict[str, Any] = {"at_most": None, "seed": 0, **changes}
    made = made or spec()
    with Workers(made, given.pop("processes", 1)) as processes:
        return prepare.prepare_source("rows", source, made, processes, **given)


def rules(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    return [refusal.rule for refusal in error.value.refusals]


def same(left: Prepared, right: Prepared) -> bool:
    if len(left) != len(right) or left.counts != right.counts:
        return False
    return all(
        np.array_equal(getattr(left.side(row), name), getattr(right.side(row), name))
        for row in range(len(left))
        for name in ("ids", "spans", "weights")
    ) and all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("digests", "rows", "cut"))


def test_every_row_is_there_as_the_encoder_makes_it(tmp_path: Path) -> None:
    rows = questions(20)
    rows[7] = BAD
    rows[11] = {"instruction": "a " * 200, "output": "b"}
    found = prepared(written(tmp_path / "rows.jsonl", rows))
    assert found.counts == {
        "rows": 20,
        "not_sampled": 0,
        "dropped": {
            "output is not a text": {"count": 1, "first": [8]},
            "longer than max_length": {"count": 1, "first": [12]},
        },
    }
    assert found.rows.tolist() == [row for row in range(20) if row not in (7, 11)]
    encoder = spec().encoder
    for place, row in enumerate(found.rows.tolist()):
        (wanted,) = encoder.encode([formats.align(rows[row], "alpaca", {}, {})])
        assert not isinstance(wanted, formats.BadRow)
        side = found.side(place)
        assert side.ids.tolist() == wanted.tokens.ids
        spans = [(*span, weight) for span, weight in zip(side.spans.tolist(), side.weights.tolist(), strict=True)]
        assert spans == wanted.tokens.spans
        assert found.digests[place].tobytes() == mix.digest(rows[row])
        assert found.lengths[place] == len(side.ids)
    trained, leading = found.trained()
    assert trained.tolist() == [int(np.diff(found.side(row).spans).sum()) for row in range(18)]
    assert not leading.any()


def test_a_row_is_known_by_what_its_format_reads_of_it(tmp_path: Path) -> None:
    """So that none is held out and trained too, as another row of the set or of another set."""
    rows = questions(30)
    own = [{"id": at, "question": row["instruction"], "output": row["output"]} for at, row in enumerate(rows * 10)]
    named = prepared(written(tmp_path / "own.jsonl", own, columns={"instruction": "question"}))
    assert named.digests.tolist() == prepared(written(tmp_path / "rows.jsonl", rows)).digests.tolist() * 10
    mixed = mix.mix({"rows": named.digests}, settings({"rows": planned()}, validation_fraction=0.1), 0)
    assert len(mixed.validation) == 30 and set(mixed.validation % 30).isdisjoint(mixed.train % 30)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("at_most", [None, 60])
def test_lines_that_are_no_rows_are_dropped_by_reason(
    processes: int, at_most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BLOCK_ROWS", 8)
    monkeypatch.setattr(workers, "_FEW", 2)
    lines = [json.dumps(row).encode() for row in questions(60)]
    lines[3], lines[8] = b'{"instruction": "a"', b"{'a': 1}"
    lines[40], lines[41], lines[59] = b"[1]", b'{"instruction": "caf\xe9", "output": "b"}', b'{"output": "\\ud800"}'
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n".join(lines))
    found = prepared(planned(path=str(tmp_path / "rows.jsonl")), processes=processes, at_most=at_most)
    assert found.counts == {
        "rows": 60,
        "not_sampled": 0,
        "dropped": {
            "not JSON": {"count": 2, "first": [4, 9]},
            "not an object": {"count": 1, "first": [41]},
            "not UTF-8": {"count": 1, "first": [42]},
            "has half of a surrogate pair": {"count": 1, "first": [60]},
        },
    }
    assert found.rows.tolist() == [row for row in range(60) if row not in (3, 8, 40, 41, 59)]


def test_mostly_broken_lines_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([json.dumps(questions(1)[0]).encode(), b"{", b"{", b"[]"]))
    with pytest.raises(UserError, match=r"rows-broken.*3 of 4 rows cannot be used: not JSON \(2: rows 2, 3\), not "):
        prepared(planned(path=str(tmp_path / "rows.jsonl")))


def test_pairs_labels_weights_and_cuts_are_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "Say it", "chosen": "yes " * 9 * number, "rejected": "no"} for number in range(1, 4)]
    source = written(tmp_path / "pairs.jsonl", rows, format="pairs")
    found = prepared(source, spec("pairs", truncation="right"))
    assert [len(found.side(row, rejected=True).ids) for row in range(3)] == found.rejected_lengths.tolist()
    assert found.cut[0] == 0 and found.cut[2] > 0
    assert found.open_ended.tolist() == (found.cut > 0).tolist()
    labels = [{"prompt": "Say it", "completion": "yes", "label": number == 1} for number in range(3)]
    found = prepared(written(tmp_path / "kto.jsonl", labels, format="kto"), spec("labelled"))
    assert [found.label(row) for row in range(3)] == [False, True, False]
    turns = [{"role": role, "content": "hm"} for role in ("user", "assistant") * 2]
    turns[1]["weight"] = 0.5  # type: ignore[assignment]
    found = prepared(written(tmp_path / "turns.jsonl", [{"messages": turns}], format="messages"))
    assert found.side(0).weights.tolist() == [0.5, 1.0]
    assert found.media(0) == ()
    texts = [{"text": "one"}, {"text": "two " * 100}]
    found = prepared(written(tmp_path / "texts.jsonl", texts, format="text"), spec("text", packing=True))
    trained, leading = found.trained()
    assert trained.tolist() == found.lengths.tolist() and leading.all()
    assert found.lengths[1] > 64  # the packer cuts it


def test_a_second_run_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "rows.jsonl", questions(30))
    first = prepared(source)

    def never(*_: Any) -> Any:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(read, "source_rows", never)
    monkeypatch.setattr(EncoderSpec, "encoder", never)
    assert same(first, prepared(source))
    asked = source.asked.model_copy(update={"weight": 3.0, "max_samples": 7})
    moved = dataclasses.replace(source, path="/elsewhere/rows.jsonl", bytes=1, asked=asked)
    assert same(first, prepared(moved))


GIVEN = """
import itertools, json
from pathlib import Path

def rows():
    return map(json.loads, Path("rows.jsonl").read_text().splitlines())

counted = itertools.count()

def drawn():
    yield from rows()
    yield {"instruction": "Count on.", "output": f"{next(counted)}"}
"""


def test_many_rows_of_a_function_are_known_by_themselves_and_not_by_its_code(
    here: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "given_from_a_file.py").write_text(GIVEN)
    source = planned(origin="function", path="given_from_a_file:rows", sha256="the code's")
    written(here / "rows.jsonl", questions(1100))
    first = prepared(source)
    assert len(first) == 1100
    with monkeypatch.context() as patched:
        patched.setattr(EncoderSpec, "encoder", None)
        assert same(first, prepared(source))  # from the cache
    written(here / "rows.jsonl", questions(1100, first=7))
    assert not same(first, prepared(source))
    written(here / "rows.jsonl", questions(1100)[::-1])
    assert prepared(source).digests[0].tolist() == first.digests[-1].tolist()
    there = set(kept.iterdir())
    with pytest.raises(UserError) as error:
        prepared(dataclasses.replace(source, path="given_from_a_file:drawn"))
    assert rules(error) == ["function-unsteady"]
    assert {path for path in kept.iterdir() if path.is_dir()} == {path for path in there if path.is_dir()}


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"format": "sharegpt"},
        {"columns": {"output": "answer"}},
        {"tags": {"role_tag": "from"}},
        {"folder": "images"},
        {"path": "rows.txt"},
        {"origin": "function"},
        {"origin": "hub", "revision": "main"},
    ],
)
def test_the_key_is_of_all_that_a_source_decides(change: dict[str, Any]) -> None:
    before = planned(sha256="1" * 64)
    made = spec()
    assert prepare.key(before, made, None, 0) != prepare.key(planned(**{"sha256": "1" * 64, **change}), made, None, 0)


def test_the_key_is_of_the_tokenizer_the_settings_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    source = planned(sha256="1" * 64)
    made = spec()
    changed = [
        spec(max_length=65),
        spec(truncation="left"),
        spec(mask_history=True),
        spec(reasoning="strip"),
        spec("text"),
        dataclasses.replace(made, template=made.template + " "),
        dataclasses.replace(made, tokenizer=(made.tokenizer or "") + " "),
        dataclasses.replace(made, eos=1),
    ]
    keys = {prepare.key(source, each, None, 0) for each in [made, *changed]}
    assert len(keys) == len(changed) + 1
    # where packed documents end is known after, and a seed draws nothing where all rows are wanted
    assert prepare.key(source, spec(isolate_documents=True), None, 1) == prepare.key(source, made, None, 0)
    assert prepare.key(source, made, 10, 1) != prepare.key(source, made, 10, 0) != prepare.key(source, made, 9, 0)
    before = prepare.key(source, made, None, 0)
    monkeypatch.setattr(prepare, "version", lambda name: "0")
    assert prepare.key(source, made, None, 0) != before


def test_what_ends_in_the_middle_leaves_nothing(tmp_path: Path, kept: Path) -> None:
    source = written(tmp_path / "rows.jsonl", questions(2100))
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(source, stop=stop)
    assert [path.name for path in kept.iterdir() if path.suffix != ".lock"] == []
    whole = prepared(source)
    # of a process that was killed: its folder is in nobody's way
    folder = whole.folder
    left = folder.with_name(f".{folder.name}.1")
    folder.rename(left)
    assert same(whole, prepared(source))
    assert not left.exists()


@pytest.mark.parametrize("harm", ["cut", "gone", "folder", '{"counts"', "[]", "{}", "\xff\xfe"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, harm: str) -> None:
    source = written(tmp_path / "rows.jsonl", questions(30))
    before = prepared(source)
    lengths, (shard,) = before.lengths.tolist(), before.folder.glob("*.arrow")
    if harm == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
    elif harm == "gone":
        shard.unlink()
    elif harm == "folder":
        (before.folder / "index.json").unlink()
        (before.folder / "index.json").mkdir()
    else:
        (before.folder / "index.json").write_text(harm, encoding="latin-1")
    assert prepared(source).lengths.tolist() == lengths


def test_a_cache_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that another user made for himself."""
    source = written(tmp_path / "rows.jsonl", questions(3))
    prepared(source)

    def forbidden(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store.Path, "read_bytes", forbidden)
    with pytest.raises(UserError) as error:
        prepared(source)
    assert rules(error) == ["data-cache"] and "it cannot be read (Permission denied)" in str(error.value)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, kept: Path) -> None:
    source = written(tmp_path / "rows.jsonl", questions(1500))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a write beyond fails as one to a full disk does
    try:
        with pytest.raises(UserError) as error:
            prepared(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rules(error) == ["data-cache"]
    assert [path.name for path in kept.iterdir() if path.suffix != ".lock"] == []
    assert len(prepared(source)) == 1500


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "rows.jsonl", questions(3))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError) as error:
        prepared(source)
    assert rules(error) == ["data-cache"]


def test_two_at_once_make_it_once(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "rows.jsonl", questions(50))
    reading, found = list[str](), list[Prepared]()
    original = read.source_rows

    def slowly(source: DataSource) -> Iterator[read.Row]:
        reading.append(source.path)
        time.sleep(0.3)
        yield from original(source)

    monkeypatch.setattr(read, "source_rows", slowly)
    threads = [threading.Thread(target=lambda: found.append(prepared(source))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(reading) == 1
    assert len([path for path in kept.iterdir() if path.is_dir()]) == 1


def _without_locks(*_: Any) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_a_file_system_without_locks_holds_a_cache(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile makes it too, and the first one's stays: it may be mapped by then."""
    monkeypatch.setattr(fcntl, "flock", _without_locks)
    source, found = written(tmp_path / "rows.jsonl", questions(50)), list[Prepared]()

    def progress(done: int) -> None:
        (aside,) = kept.glob(".*[!k]")
        found.append(prepared(source))
        assert aside.is_dir()

    second = prepared(source, progress=progress)
    (first,) = found
    assert same(first, second) and first.folder == second.folder
    assert [path.name for path in kept.iterdir() if path.suffix != ".lock"] == [first.folder.name]


@pytest.mark.parametrize("locked", [True, False])
def test_what_a_killed_process_left_goes_where_it_is_known_to_be_dead(
    locked: bool, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "rows.jsonl", questions(5))
    folder = prepared(source).folder
    (folder / "index.json").unlink()
    (left := kept / f".{folder.name}.{os.getpid()}").mkdir()
    if not locked:
        monkeypatch.setattr(fcntl, "flock", _without_locks)
    assert len(prepared(source)) == 5
    assert left.exists() is not locked


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, kept: Path) -> None:
    source = written(tmp_path / "rows.jsonl", questions(30))

    def progress(done: int) -> None:
        written(tmp_path / "rows.jsonl", questions(40))

    with pytest.raises(UserError) as error:
        prepared(source, progress=progress)
    assert rules(error) == ["data-changed"]
    assert not any(path.is_dir() for path in kept.iterdir())


@pytest.mark.parametrize(("bad", "refused"), [(10, False), (11, True)])
def test_a_format_that_most_rows_do_not_fit_is_wrong(tmp_path: Path, bad: int, refused: bool) -> None:
    source = written(tmp_path / "rows.jsonl", [*questions(20 - bad), *[BAD] * bad])
    if not refused:
        assert prepared(source).counts["dropped"]["output is not a text"]["count"] == bad
        return
    with pytest.raises(UserError) as error:
        prepared(source)
    assert rules(error) == ["rows-broken"]
    rows = "10, 11, 12, 13, 14 …"
    assert f"{bad} of 20 rows cannot be used: output is not a text (11: rows {rows})" in str(error.value)


def test_a_format_whose_texts_are_empty_may_be_right(tmp_path: Path) -> None:
    """The words of another format would send a person the wrong way."""
    empty = [{"instruction": "Say it.", "output": ""}] * 4
    source = written(tmp_path / "rows.jsonl", [*questions(4), *empty, BAD, BAD])
    with pytest.raises(UserError) as error:
        prepared(source)
    assert rules(error) == ["rows-empty"]
    told = "6 of 10 rows cannot be used: output is empty (4: rows 5, 6, 7, 8), output is not a text (2: rows 9, 10)"
    assert told in str(error.value) and "format" not in str(error.value)


def test_a_format_that_no_row_fits_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def endless(source: DataSource) -> Iterator[read.Row]:
        for number in range(1_000_000):
            asked.append(number)
            yield BAD

    with monkeypatch.context() as patched, pytest.raises(UserError) as error:
        patched.setattr(read, "source_rows", endless)
        prepared(planned(origin="hub", path="me/set"))
    assert rules(error) == ["rows-broken"]
    assert len(asked) < 10_000
    # rows that are too long fit the format: they are dropped, however many they are
    source = written(tmp_path / "rows.jsonl", [{"instruction": "a " * 99, "output": "b"}] * 1500)
    assert prepared(source).counts["dropped"]["longer than max_length"]["count"] == 1500


def test_a_template_that_takes_no_row_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def endless(source: DataSource) -> Iterator[read.Row]:
        for number in range(1_000_000):
            asked.append(number)
            yield {"instruction": f"Say {number}.", "output": "It is said."}

    silent = dataclasses.replace(spec(), template="{{ 'Hi' }}", tool_template="{{ 'Hi' }}")
    with monkeypatch.context() as patched, pytest.raises(UserError) as error:
        patched.setattr(read, "source_rows", endless)
        prepared(planned(origin="hub", path="me/set"), silent)
    assert rules(error) == ["nothing-to-train"]
    assert "the chat template leaves out a message" in str(error.value) and len(asked) < 10_000


def test_reasons_do_not_grow_without_end() -> None:
    dropped = prepare.Dropped()
    dropped.add(workers.Bad(row, 0, f"reason {row}", True) for row in range(1000))
    assert len(dropped.reasons) < 60
    assert sum(entry["count"] for entry in dropped.reasons.values()) == 1000
    assert dropped.reasons["reason 3"] == {"count": 1, "first": [4]}


@pytest.mark.parametrize("at_most", [1, 40, 1999])
def test_a_sample_is_the_same_as_from_all_rows(tmp_path: Path, at_most: int) -> None:
    rows = questions(2500)
    rows[::7] = [BAD] * len(rows[::7])
    source = written(tmp_path / "rows.jsonl", rows, max_samples=at_most)
    plan, whole, some = settings({"rows": source}), prepared(source), prepared(source, at_most=at_most, seed=3)
    (one, other) = (mix.mix({"rows": found.digests}, plan, 3) for found in (whole, some))
    assert whole.rows[one.train].tolist() == some.rows[other.train].tolist()
    assert len(one.train) == at_most
    counts = some.counts
    bad = sum(entry["count"] for entry in counts["dropped"].values())
    assert counts["rows"] == 2500 == counts["not_sampled"] + bad + other.used + other.not_sampled
    if at_most < 100:
        assert len(some) < len(whole) / 2  # most were never encoded
    # those that rank below the last that is taken, and no other
    ranks = mix.ranks(mix.words([mix.digest(row) for row in rows]), 3, "sample")
    limit = ranks[whole.rows[one.train]].max()
    assert bad == sum(int(rank <= limit) for rank, row in zip(ranks, rows, strict=True) if row is BAD)


@pytest.mark.parametrize("own", [{}, {"max_samples": 150}, {"max_samples": 60}])
@pytest.mark.parametrize("among", [None, 50])
def test_a_sample_beside_a_held_out_set_is_the_same_as_from_all_rows(
    own: dict[str, Any], among: int | None, tmp_path: Path
) -> None:
    """Of the rows that are not held out those that rank lowest, wherever they stand; most others are not encoded."""
    rows, seed, most = questions(5000), 3, 100
    order = np.argsort(mix.ranks(mix.words([mix.digest(row) for row in rows]), seed, "sample"))
    held = written(tmp_path / "held.jsonl", [rows[at] for at in order[:most]], max_samples=among)
    sources = {"all": written(tmp_path / "rows.jsonl", rows, **own), "held": held}
    plan = settings(sources, validation="held", max_samples=most)
    found = prepare.prepare(plan, sources, spec(), seed, 1)
    assert [*found] == ["all", "held"]
    some, whole = (
        mix.mix({"all": each.digests, "held": found["held"].digests}, plan, seed)
        for each in (found["all"], prepared(sources["all"]))
    )
    first = among or most
    wanted = order[first : min(first + most, own.get("max_samples", 5000))]
    assert sorted(found["all"].rows[some.train].tolist()) == sorted(wanted.tolist()) == sorted(whole.train.tolist())
    assert some.contained == whole.contained == min(first, own.get("max_samples", first))
    assert len(found["all"]) < 2500


def test_the_key_is_of_what_is_held_out_where_not_all_is_wanted() -> None:
    source, made, held = planned(sha256="1" * 64), spec(), np.arange(2, dtype=np.uint64)
    assert prepare.key(source, made, 10, 0, held) != prepare.key(source, made, 10, 0)
    assert prepare.key(source, made, 10, 0, held) != prepare.key(source, made, 10, 0, held + np.uint64(1))


def test_processes_change_nothing(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW", 1)
    rows = questions(2500)
    rows[3] = rows[2400] = BAD
    rows[2000] = {"instruction": "a " * 200, "output": "b"}
    source = written(tmp_path / "rows.jsonl", rows)
    two = dataclasses.replace(source, asked=source.asked.model_copy(update={"max_samples": 100}))
    sources = {"one": source, "two": two}
    plan = settings(sources)
    alone = prepare.prepare(plan, sources, spec(), 0, 1)
    kept.rename(kept.with_name("others"))
    done = list[int]()
    several = prepare.prepare(plan, sources, spec(), 0, 2, progress=done.append)
    assert same(alone["one"], several["one"])
    trained = [mix.mix({name: each.digests for name, each in found.items()}, plan, 0) for found in (alone, several)]
    # which rows were encoded in vain depends on how fast they came, which are trained does not
    assert trained[0].used == trained[1].used == 2597
    left = [found["two"].counts["not_sampled"] + each.not_sampled for found, each in zip((alone, several), trained)]  # noqa: B905
    assert left[0] == left[1]
    assert done == sorted(done) and done[-1] == 5000


def test_workers_import_no_heavy_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW", 0)
    source = written(tmp_path / "rows.jsonl", questions(5))
    with Workers(spec(), 2) as processes:
        assert len(prepare.prepare_source("rows", source, spec(), processes, at_most=None, seed=0)) == 5
        assert processes._pool is not None
        heavy = "sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(__import__('sys').modules))"
        assert processes._pool.submit(eval, heavy).result() == []
        assert processes._pool.submit(eval, "__import__('os').environ['TOKENIZERS_PARALLELISM']").result() == "false"


@pytest.mark.parametrize("few", [0, 5])
def test_a_row_that_must_stop_the_run_does(tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW", few)
    rows = [*questions(3), {"instruction": "a " * 200, "output": "b"}]
    with pytest.raises(UserError) as error:
        prepared(written(tmp_path / "rows.jsonl", rows), spec(truncation="error"), processes=2)
    assert rules(error) == ["row-too-long"]
    assert "row 4 of rows has" in str(error.value)


class Dying:
    """Stands for an encoder that takes more memory than there is."""

    tokenizer = processor = None

    @property
    def encoder(self) -> "Dying":
        return self

    def encode(self, records: list[Any]) -> list[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return records


def test_a_lost_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEW", 0)
    aligning = workers.Aligning(format="alpaca", columns={}, tags={}, folder=None)
    dying: Any = Dying()
    with pytest.raises(UserError) as error, Workers(dying, 2) as processes:
        list(processes.encode(workers.blocks(questions(10), aligning)))
    assert rules(error) == ["worker-lost"]


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import planned
from factory.data.prepare import workers
from factory.data.prepare.workers import Aligning, Workers, blocks
if __name__ == "__main__":
    workers._FEW = 0
    with Workers(planned.spec(), 2) as processes:
        rows = (row for part in range(10**6) for row in planned.questions(1000))
        for found in processes.encode(blocks(rows, Aligning(format="alpaca", columns={{}}, tags={{}}, folder=None))):
            print(found.rows, flush=True)
"""


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    tests = Path(tiny.__file__).parent
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(tests), str(tests / "data")]))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, cwd=tests.parent) as parent:
        assert parent.stdout is not None
        assert any(line.endswith(b"500\n") for line in parent.stdout)  # the trainer of the tokenizer prints too
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_long_rows_come_in_small_blocks() -> None:
    aligning = workers.Aligning(format="text", columns={}, tags={}, folder=None)
    rows = [{"text": "a" * 1_500_000}] * 7 + [{"text": "b", "more": [{"c": 1}]}] * 2100
    found = list(workers.blocks(rows, aligning))
    assert [len(block.rows) for block in found] == [3, 3, 500, 500, 500, 500, 101]
    assert [block.first for block in found] == [0, 3, 6, 506, 1006, 1506, 2006]


def test_images_are_looked_for_in_the_sources_folder() -> None:
    aligning = workers.Aligning(format="sharegpt", columns={}, tags={}, folder="/data/images")
    turns = [{"from": "human", "value": "<image><image><image>what?"}, {"from": "gpt", "value": "a cat"}]
    images = ["cat.png", "/other/dog.png", "https://example.org/cow.png"]
    record = workers.record_of({"conversations": turns, "images": images}, aligning)
    assert record.images == ("/data/images/cat.png", "/other/dog.png", "https://example.org/cow.png")


def test_what_depends_on_images_is_made_again_when_they_change(tmp_path: Path) -> None:
    here, missing = tmp_path / "a b.png", tmp_path / "c.png"
    here.write_bytes(b"1234")
    images = [str(here), here.as_uri(), str(missing)]
    folder = tmp_path / "whole"

    def whole() -> bool:
        folder.mkdir(exist_ok=True)
        store.Writer(folder).finish({}, images)
        return store.is_whole(folder)

    assert whole()
    here.write_bytes(b"12345")
    assert not store.is_whole(folder)
    assert whole()
    missing.write_bytes(b"")
    assert not store.is_whole(folder)
    assert whole()
    here.unlink()
    assert not store.is_whole(folder)


@pytest.mark.parametrize("image", ["a" * 300, "file://[a/b.png", "a\0b.png"])
def test_an_image_whose_name_no_file_has_is_a_missing_one(image: str, tmp_path: Path) -> None:
    """As base64 without its data: before it; a bad row must not end the run."""
    store.Writer(tmp_path).finish({}, [image])
    assert store.is_whole(tmp_path)


def test_the_images_of_a_block_are_known_of_bad_rows_too() -> None:
    aligning = workers.Aligning(format="sharegpt", columns={}, tags={}, folder=None)
    turns = [{"from": "human", "value": "<image>" + "a " * 300}, {"from": "gpt", "value": "a cat"}]
    images = ["cat.png", "data:image/png;base64,AAAA"]
    turns[0]["value"] += "<image>"
    (block,) = workers.blocks([{"conversations": turns, "images": images}], aligning)
    found = workers.encode(spec().encoder, block)
    assert len(found.bad) == 1 and found.files == {"cat.png"}  # the other one is a part of the row


def test_a_slow_tokenizer_works_too(tmp_path: Path) -> None:
    made = spec()
    assert made.tokenizer is not None and pack().packing is False
    source = written(tmp_path / "rows.jsonl", questions(8))
    slow = dataclasses.replace(made, tokenizer=None, files=_saved(tmp_path / "tokenizer"))
    assert prepared(source, slow).lengths.tolist() == prepared(source, made).lengths.tolist()


def _saved(folder: Path) -> dict[str, str]:
    import base64

    tiny.tokenizer().save_pretrained(folder)
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.iterdir()}


def test_counts_are_json(tmp_path: Path) -> None:
    found = prepared(written(tmp_path / "rows.jsonl", [*questions(5), BAD]))
    index = json.loads((found.folder / "index.json").read_text())
    assert index["counts"] == found.counts
    assert store.is_whole(found.folder)


@pytest.mark.parametrize(
    ("folder", "inside", "image", "found"),
    [
        ("/data/images", None, "a/../cat.png", "/data/images/a/../cat.png"),
        ("/data/images", None, "../cat.png", None),
        ("/data/images", None, "a/../../images2/cat.png", None),
        (None, ("/cache",), "/cache/sets/cat.png", "/cache/sets/cat.png"),
        (None, ("/cache",), "/cache/../home/cat.png", None),
        (None, ("/cache",), "/home/cat.png", None),
        (None, ("/cache",), "cat.png", None),
        (None, ("/cache",), "file:///home/cat.png", None),
        (None, ("/cache",), "data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
        (None, ("/cache",), "https://example.org/a.png", "https://example.org/a.png"),  # which is not fetched
        ("/data/images", None, "10:30.png", "/data/images/10:30.png"),
        ("/data/images", ("/cache",), "a/cat.png", "/data/images/a/cat.png"),
        ("/data/images", ("/cache",), "../cat.png", None),
        ("/data/images", ("/cache",), "/data/images/cat.png", None),
    ],
)
def test_rows_name_no_image_outside_of_their_folder(
    folder: str | None, inside: tuple[str, ...] | None, image: str, found: str | None
) -> None:
    aligning = workers.Aligning(format="sharegpt", columns={}, tags={}, folder=folder, inside=inside)
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}]
    row = {"conversations": turns, "images": [image]}
    if found is None:
        with pytest.raises(BadRow, match="leads out"):
            workers.record_of(row, aligning)
    else:
        assert workers.record_of(row, aligning).images == (found,)


def test_a_set_of_the_hub_names_what_was_downloaded_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", "/own/cache")
    found = aligning_of(planned(origin="hub")).inside
    assert found is not None and "/own/cache" in found
    assert aligning_of(planned()).inside is None
