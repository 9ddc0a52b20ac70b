"""Prepare: a source's rows to encoded rows in the cache, made once for one content, one tokenizer and one setting."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import factory
from factory import cache as cache_folder
from factory.config.refusal import refuse
from factory.config.settings import Data
from factory.data import function, mix, read
from factory.data.encoding import EncoderSpec
from factory.data.media.read import UNSEEN
from factory.data.mix import Ranks
from factory.data.prepare import store
from factory.data.prepare.store import Prepared
from factory.data.prepare.workers import BLOCK_ROWS, Aligning, Bad, Block, Encoded, Workers, blocks
from factory.data.record import EMPTY, TEMPLATE
from factory.plan.known import code
from factory.plan.plan import DataSource

__all__ = ["Prepared", "Progress", "aligning_of", "key", "prepare", "prepare_source", "refuse_wrong_format"]

Progress = Callable[[int], None]  # told of the rows that are done
MOST_BAD = 0.5  # share of bad rows above which the format itself must be wrong
_EARLY = 1000  # rows after which a format that fits none of them is refused
_FIRST = 5  # row numbers that are kept of a reason
_REASONS = 50  # different ones that are told apart
_OTHER = "other reasons"
_TOLD = 5  # reasons that a refusal names
_NONE: Ranks = np.zeros(0, np.uint64)
_VERSIONS = ("tokenizers", "transformers", "jinja2", "pyarrow", "datasets")


def prepare(
    data: Data,
    sources: Mapping[str, DataSource],
    spec: EncoderSpec,
    seed: int,
    processes: int,
    progress: Progress = lambda done: None,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, Prepared]:
    """Every source, from the cache where it is there. `stop` is called now and then and ends it all by raising."""
    found: dict[str, Prepared] = {}
    with Workers(spec, processes) as workers:
        # the one that is held out first: its rows are none of the others
        for name in sorted(sources, key=lambda name: name != data.validation):
            before = sum(each.counts["rows"] for each in found.values())
            at_most, held = _at_most(data, name, found, seed)
            found[name] = prepare_source(
                name,
                sources[name],
                spec,
                workers,
                at_most=at_most,
                held=held,
                seed=seed,
                progress=lambda done, before=before: progress(before + done),
                stop=stop,
            )
    return {name: found[name] for name in sources}


def _at_most(data: Data, name: str, found: dict[str, Prepared], seed: int) -> tuple[int | None, Ranks]:
    """How many rows of this source can be of use, and the ranks of those that do not count among them.

    Its own bound is of all its rows, that of all sources together of what is not held out.
    """
    own, together = data.sources[name].max_samples, data.max_samples
    if together is None or name == data.validation or (own is not None and own <= together):
        return own, _NONE
    if data.validation is None:
        return together, _NONE
    held = mix.ranks(found[data.validation].digests, seed, "sample")
    return together, np.sort(held)[: data.sources[data.validation].max_samples]


def prepare_source(
    name: str,
    source: DataSource,
    spec: EncoderSpec,
    workers: Workers,
    *,
    at_most: int | None,
    held: Ranks = _NONE,
    seed: int,
    progress: Progress = lambda done: None,
    stop: Callable[[], None] = lambda: None,
) -> Prepared:
    """The rows of one source. With `at_most`, at least those so many of the smallest rank that can be trained.

    Rows of the ranks `held` are not counted.
    """
    if source.asked.origin == "function":
        source = replace(source, sha256=_sum_of_all(source, stop))
    target = cache_folder.folder() / "data" / key(source, spec, at_most, seed, held)
    with store.reading(target):
        if store.is_whole(target):
            return Prepared(target)
    with store.making(target) as aside:
        if aside is not None:
            _make(name, source, workers, _Tally(name, source, at_most, held), seed, aside, target, progress, stop)
    return Prepared(target)


def _make(
    name: str,
    source: DataSource,
    workers: Workers,
    tally: "_Tally",
    seed: int,
    aside: Path,
    target: Path,
    progress: Progress,
    stop: Callable[[], None],
) -> None:
    writer, files, given = store.Writer(aside), set[str](), function.Sum()
    rows = read.source_rows(source)
    if source.asked.origin == "function":
        rows = given.of(rows)

    def wanted() -> Iterator[Block]:
        for block in blocks(rows, aligning_of(source), seed, name):
            stop()
            yield block

    try:
        for block, batch in workers.tables(wanted(), lambda: tally.limit):
            tally.add(block)
            files |= block.files if workers.reads_media else frozenset()
            if len(block.numbers):
                with store.writing(target):
                    writer.write(batch)
            progress(tally.rows)
        counts = tally.counts()
        if source.asked.origin == "file" and source.sha256 and read.digest(Path(source.path)) != source.sha256:
            raise refuse(
                "data-changed",
                f"data.sources.{name}.path={source.path}",
                "it changed while it was read",
                because="what was read of it is neither the old content nor the new",
                fix="let whatever writes it finish, then run again",
            )
        if source.asked.origin == "function" and given.hexdigest() != source.sha256:
            wrong = "it was called twice, and gave other rows the second time"
            raise refuse(
                "function-unsteady",
                f"data.sources.{name}.path={source.path}",
                wrong,
                because=(
                    "its rows are read more than once, and the ranks, the checks and whoever resumes would each see "
                    "others"
                ),
                fix=(
                    "have it give the same rows in the same order: draw with random.Random(0), sort what has no "
                    "order, leave out columns that tell the time"
                ),
            )
        with store.writing(target):
            writer.finish(counts, files)
    finally:
        writer.abandon()


def _sum_of_all(source: DataSource, stop: Callable[[], None]) -> str:
    """Of all that a function gives now: its code does not tell what it reads."""
    found = function.Sum()
    for number, _ in enumerate(found.of(read.source_rows(source))):
        if number % BLOCK_ROWS == 0:
            stop()
    return found.hexdigest()


def aligning_of(source: DataSource) -> Aligning:
    inside = None
    if source.asked.origin == "hub":  # its rows are somebody else's: they name what was downloaded with them
        from factory.data import hub

        inside = hub.cache_folders()
    own = None
    if source.asked.origin == "file":
        path = Path(source.path)
        own = str(path if path.is_dir() else path.parent)
    asked = source.asked
    folder = None if asked.folder is None else os.path.expanduser(asked.folder)  # noqa: PTH111  which does not raise
    return Aligning(format=source.format, columns=asked.columns, tags=asked.tags, folder=folder, inside=inside, own=own)


class _Tally:
    """What became of a source's rows, and above which rank none is wanted any more."""

    def __init__(self, name: str, source: DataSource, at_most: int | None, held: Ranks):
        self._name, self._format, self._at_most, self._held = name, source.format, at_most, held
        self.rows = self._skipped = 0
        self._bad = list[Bad]()  # kept only until it is known which of them rank low enough to count
        self._dropped = Dropped()
        self._misfits, self._unseen, self._unrendered = Dropped(), Counter[str](), Dropped()
        self._ranks, self._new = _NONE, list[Ranks]()
        self.limit: int | None = None

    def add(self, block: Encoded) -> None:
        self.rows += block.rows
        self._skipped += block.skipped
        self._misfits.add(bad for bad in block.bad if not bad.aligned)
        self._unseen.update(bad.reason for bad in block.bad if bad.reason in UNSEEN)
        self._unrendered.add(bad for bad in block.bad if bad.reason.startswith(TEMPLATE))
        looked = self.rows - self._skipped
        if looked >= _EARLY and self._misfits.total == looked:
            refuse_wrong_format(self._name, self._format, looked, self._misfits)
        if looked >= _EARLY and self._unrendered.total == looked:  # no other row of such a set would fare better
            wrong = f"none of the first {looked:,} rows of {self._name} is left"
            raise refuse(
                "nothing-to-train",
                "data",
                wrong,
                because=f"all were dropped: {self._unrendered!s}",
                fix=(
                    "correct the rows; raise data.max_length where they are longer; set another model.template where "
                    "it refuses, changes or leaves out what they say"
                ),
            )
        if self._at_most is None:
            self._dropped.add(block.bad)
            return
        self._bad += block.bad
        self._new.append(block.ranks)
        if sum(map(len, self._new)) >= max(1, self._at_most // 4):
            self._narrow()

    def _narrow(self) -> None:
        """The largest rank among the `at_most` smallest so far: what ranks above it will not be among them."""
        assert self._at_most is not None
        new, self._new = np.concatenate([_NONE, *self._new]), []
        self._ranks = np.concatenate([self._ranks, new[~np.isin(new, self._held)]])
        if len(self._ranks) >= self._at_most:
            self._ranks = np.partition(self._ranks, self._at_most - 1)[: self._at_most]
            self.limit = int(self._ranks.max())

    def counts(self) -> dict[str, Any]:
        """rows = the encoded ones + not_sampled + dropped. Raises UserError where most rows do not fit the format."""
        looked, outside = self.rows - self._skipped, list[Bad]()
        refuse_wrong_format(self._name, self._format, looked, self._misfits)
        _refuse_unseen(self._name, looked, self._unseen)
        if self._at_most is not None:
            self._narrow()
            outside = [bad for bad in self._bad if self.limit is not None and bad.rank > self.limit]
            self._dropped.add(bad for bad in self._bad if self.limit is None or bad.rank <= self.limit)
        return {
            "rows": self.rows,
            "not_sampled": self._skipped + len(outside),
            "dropped": self._dropped.reasons,
        }


def refuse_wrong_format(name: str, format: str, rows: int, misfits: "Dropped") -> None:
    """Raises UserError where most of the rows are none of the format (`misfits`)."""
    if misfits.total <= rows * MOST_BAD:
        return
    empty = sum(entry["count"] for reason, entry in misfits.reasons.items() if reason.endswith(EMPTY))
    wrong = f"{misfits.total:,} of {rows:,} rows cannot be used: {misfits}"
    if empty > misfits.total / 2:
        raise refuse(
            "rows-empty",
            f"data.sources.{name}.columns",
            wrong,
            because="more than half of a set is seldom left out on purpose",
            fix=(
                "fill these rows or take them out of the file; where another column has the text, map it by "
                f"data.sources.{name}.columns"
            ),
        )
    raise refuse(
        "rows-broken",
        f"data.sources.{name}.format={format}",
        wrong,
        because="more than half of the rows are bad, so the format may be another",
        fix=f"set data.sources.{name}.format or map data.sources.{name}.columns, or correct these rows",
    )


def _refuse_unseen(name: str, rows: int, unseen: Counter[str]) -> None:
    """Raises UserError where what most rows show is not there: nothing is kept, as they may be put there."""
    if unseen.total() <= rows * MOST_BAD:
        return
    wrong = (
        f"of {unseen.total():,} of {rows:,} rows what they show cannot be had, most as: {unseen.most_common(1)[0][0]}"
    )
    raise refuse(
        "media-unread",
        f"data.sources.{name}.folder",
        wrong,
        because="most of the data would be lost",
        fix=(
            f"set data.sources.{name}.folder to the folder where the paths of its images, videos and sounds "
            "start, put them there, or download those at an address"
        ),
    )


class Dropped:
    """Rows that are not trained, by reason: {reason: {count, first}}, `first` being row numbers from 1."""

    def __init__(self, reasons: dict[str, dict[str, Any]] | None = None) -> None:
        self.reasons = {} if reasons is None else reasons

    @property
    def total(self) -> int:
        return sum(entry["count"] for entry in self.reasons.values())

    def __str__(self) -> str:
        """The most frequent reasons, each with its first rows."""
        often = sorted(self.reasons.items(), key=lambda item: -item[1]["count"])
        told = [f"{reason} ({_told(**entry)})" for reason, entry in often[:_TOLD]]
        return ", ".join([*told, *([f"{len(often) - _TOLD} more reasons"] if len(often) > _TOLD else [])])

    def add(self, bad: Iterable[Bad]) -> None:
        for row in bad:
            reason = row.reason if row.reason in self.reasons or len(self.reasons) < _REASONS else _OTHER
            entry = self.reasons.setdefault(reason, {"count": 0, "first": []})
            entry["count"] += 1
            if len(entry["first"]) < _FIRST:
                entry["first"].append(row.row + 1)


def _told(count: int, first: list[int]) -> str:
    more = " …" if count > len(first) else ""
    return f"{count:,}: row{'s' if count > 1 else ''} {', '.join(map(str, first))}{more}"


def key(source: DataSource, spec: EncoderSpec, at_most: int | None, seed: int, held: Ranks = _NONE) -> str:
    """A hash of all that decides which tokens a row becomes: content, format, tokenizer, settings, versions, this code.

    A hub set's content is known by its name and revision only; a function's `sha256` is of all its rows here.
    """
    asked = source.asked
    # the same bytes are other rows under another suffix
    file = [source.sha256, Path(source.path).suffixes[-2:]]
    named = [asked.origin, source.path, source.sha256, asked.subset, asked.split, asked.revision]
    content = file if asked.origin == "file" else named
    parts = [
        content,
        _plain(aligning_of(source) if spec.processor else replace(aligning_of(source), own=None)),
        _plain(spec),
        None if at_most is None else [at_most, seed, hashlib.sha256(held.tobytes()).hexdigest()],
        {name: version(name) for name in _VERSIONS},
        _decoders() if spec.processor else {},
        factory.__version__,
        code(),
    ]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _decoders() -> dict[str, str]:
    """What says how long a video or a sound is, as far as it is installed."""
    found = {}
    for name in ("av", "pillow", "torchvision"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _plain(value: Any) -> Any:
    """A dataclass as JSON, sets in order; without what changes no row's tokens."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in ("isolate_documents", "padding_free")
        }
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    assert value is None or isinstance(value, str | int | float | bool), f"{type(value)} has no content to hash"
    return value
