"""The questions of a benchmark: from a folder in its published layout, or from the hub. No torch."""

import csv
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from factory import cache
from factory.benchmarks.types import LETTERS, NAMES, Benchmark, Exam, Hub, Question, benchmark
from factory.config.hub import lost
from factory.config.refusal import UserError, did_you_mean, refuse
from factory.data import hub as hub_rows

_benchmark_broken = partial(
    refuse,
    "benchmark-broken",
    because="an accuracy over the rest would be another benchmark's",
    fix="download the set again, or correct the rows",
)
_benchmark_unreachable = partial(
    refuse,
    "benchmark-unreachable",
    because="its questions are not on this machine",
    fix=(
        "check the network (HF_ENDPOINT names a mirror, HF_TOKEN a user), or download the set and set "
        "evaluate.path to its folder"
    ),
    machine=True,
)

Part = Literal["shots", "scored"]
Record = dict[str, Any] | str  # a row by its columns' names in small letters, or why it is none
Dropped = dict[str, dict[str, int | list[str]]]
_MOST_BAD = 0.5  # share of broken rows above which the file itself must be wrong
_FIRST = 5  # places that are kept of a reason
_MOST_UNPACKED = 2**30  # bytes of an archive of questions
_NEEDED = ("question", *(letter.lower() for letter in LETTERS), "answer")


def read(name: str, source: str | None, *, shots: int, max_samples: int | None) -> Exam:
    """The benchmark (one of NAMES) from `source`: a folder, a hub set's id, or None for its own set on the hub.

    `shots` are the first rows of a subject's dev split. With `max_samples`, so many questions of each subject: its
    first ones. Raises UserError.
    """
    check_source(name, source)
    if source is not None and Path(source).is_dir():
        return _exam(name, _Folder(name, Path(source), source), shots, max_samples)
    own = benchmark(name).hub
    if source is None and own.archive is not None:
        return _exam(name, _Folder(name, _archive(own), own.path), shots, max_samples)
    if source is not None:
        own = replace(own, path=source)
    return _exam(name, _Set(name, own), shots, max_samples)


def check_source(name: str, source: str | None) -> None:
    """Raises UserError where it is neither a folder nor what a hub set's id looks like. Asks no network."""
    if source is None or Path(source).is_dir():
        return
    try:
        hub_rows.check_id(source, f"evaluate.path={source}")
    except UserError:
        raise _no_source(name, source, "there is no such folder, and it is no set's id on the hub") from None


class _Folder:
    """The published files."""

    def __init__(self, name: str, folder: Path, shown: str) -> None:
        self.shown, self._files = shown, benchmark(name).files
        places = [place for place in (folder, folder / name, folder / "data") if place.is_dir()]
        found = {(each, place): self._subjects(each, place) for each in NAMES for place in places}
        known = {key: len(set(subjects) & set(benchmark(key[0]).subjects)) for key, subjects in found.items()}
        best = max(known, key=lambda key: (known[key], key[0] == name))
        if not known[best]:
            raise _no_source(name, shown, "none of its files is a subject's")
        if best[0] != name:
            raise _no_source(name, shown, f"it holds {benchmark(best[0]).title}'s files")
        self._place, self.subjects = best[1], found[best]

    @staticmethod
    def _subjects(name: str, place: Path) -> list[str]:
        """Those whose scored questions lie there, known or not."""
        before, after = benchmark(name).files.scored.split("{subject}")
        return sorted(path.name.removesuffix(after) for path in place.glob(f"{before}*{after}"))

    def rows(self, part: Part, subject: str) -> Iterator[tuple[str, Record]]:
        """With their places; none where the file is not there."""
        file = self._place / getattr(self._files, part).format(subject=subject)
        return self._records(file) if file.is_file() else iter(())

    def _records(self, file: Path) -> Iterator[tuple[str, Record]]:
        shown = file.relative_to(self._place)
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened, strict=True)
            try:
                rows = (row for row in reader if row)
                columns = self._files.columns or [name.strip().lower() for name in next(rows, [])]
                columns = [name.lower() for name in columns]
                if missing := [name for name in _NEEDED if name not in columns]:
                    raise self._broken(f"{shown} has no column {', '.join(missing)}")
                for row in rows:
                    place = f"{shown}:{reader.line_num}"
                    wrong = f"{len(row)} columns where {len(columns)} are needed"
                    yield place, dict(zip(columns, row, strict=True)) if len(row) == len(columns) else wrong
            except (csv.Error, UnicodeDecodeError) as error:
                raise self._broken(f"{shown}, after line {reader.line_num}: {error}") from None

    def _broken(self, wrong: str) -> UserError:
        return _benchmark_broken(f"evaluate.path={self.shown}", wrong)


class _Set:
    """A set on the hub, through `datasets`: one that holds all subjects, or one subset for each."""

    def __init__(self, name: str, hub: Hub) -> None:
        self.shown, self._hub = hub.path, hub
        self.subjects: list[str] = list(benchmark(name).subjects)
        self._kept: dict[str, dict[str, list[dict[str, Any]]]] = {}
        if hub.subset is not None:
            self.subjects = sorted(self._by_subject(hub.scored))

    def rows(self, part: Part, subject: str) -> Iterator[tuple[str, Record]]:
        """With their places; none where the set has none of the subject."""
        split: str = getattr(self._hub, part)
        own = self._hub.subset is None
        found = _rows(self._hub, subject, split) if own else self._by_subject(split).get(subject, [])
        return ((f"{split}, {subject}, row {number}", _record(row)) for number, row in enumerate(found, 1))

    def _by_subject(self, split: str) -> dict[str, list[dict[str, Any]]]:
        if split not in self._kept:
            rows = list(_rows(self._hub, self._hub.subset, split))
            if rows and "subject" not in rows[0]:
                raise _benchmark_broken(f"evaluate.path={self.shown}", f"{split} has no column subject")
            rows.sort(key=lambda row: row["subject"])  # which keeps the order within a subject
            self._kept[split] = {name: list(each) for name, each in groupby(rows, key=lambda row: row["subject"])}
        return self._kept[split]


def _record(row: dict[str, Any]) -> Record:
    """A row of a set: its choices apart or as a list, its answer a letter or its place from 0."""
    found = {name.lower(): value for name, value in row.items()}
    choices, answer = found.get("choices"), found.get("answer")
    if isinstance(choices, list):
        if len(choices) != len(LETTERS):
            return f"{len(choices)} choices where {len(LETTERS)} are needed"
        found |= zip(_NEEDED[1:-1], choices, strict=True)
    if isinstance(answer, int):
        found["answer"] = LETTERS[answer] if 0 <= answer < len(LETTERS) else str(answer)
    if missing := [name for name in _NEEDED if not isinstance(found.get(name), str)]:
        return f"no {', '.join(missing)}"
    return found


def _exam(name: str, source: _Folder | _Set, shots: int, max_samples: int | None) -> Exam:
    made = benchmark(name)
    for subject in source.subjects:
        if subject not in made.subjects:
            hint = did_you_mean(subject, made.subjects)
            setting = f"evaluate.path={source.shown}"
            raise refuse(
                "benchmark-subject",
                setting,
                f"{subject} is no subject of {made.title}",
                because="a subject's category and its name in the prompts are those of the benchmark's authors",
                fix=f"{hint}remove the file, or give it the name of the benchmark's subject",
            )
    dropped: Dropped = {}
    by_subject: dict[str, list[Question]] = {}
    for subject in (each for each in made.subjects if each in source.subjects):
        by_subject[subject] = _scored(source, subject, dropped)
    first = (each for questions in by_subject.values() for each in questions[:max_samples])
    taken = sorted(first, key=lambda each: (each.subject, each.number))
    return Exam(
        name=name,
        source=source.shown,
        shots={subject: _shots(source, subject, shots) for subject in dict.fromkeys(each.subject for each in taken)},
        questions=tuple(taken),
        dropped=dropped,
        absent=tuple(subject for subject in made.subjects if subject not in by_subject),
        not_sampled=sum(map(len, by_subject.values())) - len(taken),
    )


def _question(subject: str, number: int, record: Record) -> Question | str:
    """The question, or why there is none."""
    if isinstance(record, str):
        return record
    answer = record["answer"].strip()
    if not record["question"].strip():
        return "no question"
    if answer not in LETTERS:
        return f"its answer is none of {', '.join(LETTERS)}"
    return Question(subject, number, record["question"], tuple(record[name] for name in _NEEDED[1:-1]), answer)


def _scored(source: _Folder | _Set, subject: str, dropped: Dropped) -> list[Question]:
    """Broken rows are left out and noted in `dropped`. Raises UserError where most are."""
    found, bad = list[Question](), list[tuple[str, str]]()
    for number, (place, record) in enumerate(source.rows("scored", subject), 1):
        question = _question(subject, number, record)
        if isinstance(question, str):
            bad.append((place, question))
        else:
            found.append(question)
    if not found or len(bad) > _MOST_BAD * (len(found) + len(bad)):
        wrong = f"{len(bad)} of {len(found) + len(bad)} rows of {subject} cannot be used"
        first = f", as {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise _benchmark_broken(f"evaluate.path={source.shown}", wrong + first)
    for place, why in bad:
        entry = dropped.setdefault(why, {"count": 0, "first": []})
        count, first = entry["count"], entry["first"]
        assert isinstance(count, int) and isinstance(first, list)
        entry["count"] = count + 1
        if len(first) < _FIRST:
            first.append(place)
    return found


def _shots(source: _Folder | _Set, subject: str, count: int) -> tuple[Question, ...]:
    """The first rows of its dev split. Raises UserError where there are too few, or one of them is broken."""
    if not count:
        return ()
    found = list[Question]()
    for number, (place, record) in enumerate(islice(source.rows("shots", subject), count), 1):
        question = _question(subject, number, record)
        if isinstance(question, str):
            raise _benchmark_broken(f"evaluate.path={source.shown}", f"{place}: {question}")
        found.append(question)
    if len(found) < count:
        wrong = f"{subject} has {len(found)} of them in {source.shown}"
        raise refuse(
            "benchmark-shots",
            f"evaluate.shots={count}",
            wrong,
            because="every prompt begins with solved questions of the same subject, from its dev split",
            fix=(f"put them there, or ask for fewer with evaluate.shots ({len(found)} can be had; 0 asks without any)"),
        )
    return tuple(found)


def _no_source(name: str, source: str, wrong: str) -> UserError:
    made: Benchmark = benchmark(name)
    wanted = made.files.scored.format(subject="SUBJECT")
    return refuse(
        "benchmark-source",
        f"evaluate.path={source}",
        wrong,
        because="the questions are read as their authors publish them, and nothing else is taken for them",
        fix=(
            f"set evaluate.path to a folder that holds {wanted}, or to a set's id on the hub (owner/name), or "
            f"leave it out for {made.hub.path}"
        ),
    )


def _rows(hub: Hub, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """As the data's own sets are read, with words that fit a benchmark."""
    try:
        yield from hub_rows.rows(hub.path, subset, split, None)
    except UserError as error:
        raise _benchmark_unreachable(f"evaluate.path={hub.path}", error.refusals[0].wrong) from None


def _archive(hub: Hub) -> Path:
    """Where the set's zip file is unpacked, in the user's cache: once for each revision. Raises UserError."""
    from huggingface_hub import hf_hub_download

    assert hub.archive is not None
    setting = f"evaluate.path={hub.path}"
    try:
        hub_rows._refuse_no_network()
        file = Path(hf_hub_download(hub.path, hub.archive, repo_type="dataset"))
    except (*lost(), OSError) as error:
        said = str(error).strip().partition("\n")[0].rstrip(".")[:300]
        raise _benchmark_unreachable(setting, said or type(error).__name__) from None
    folder = cache.folder() / "benchmarks" / f"{file.stem}-{file.parent.name}"  # whose name is the revision
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            try:
                with zipfile.ZipFile(file) as opened:
                    if sum(each.file_size for each in opened.infolist()) > _MOST_UNPACKED:
                        raise _benchmark_broken(setting, f"{hub.archive}: it unpacks to too much")
                    opened.extractall(Path(aside) / "whole")  # which leaves no folder
            except zipfile.BadZipFile as error:
                raise _benchmark_broken(setting, f"{hub.archive}: {error}") from None
            with suppress(OSError):  # another run may have put it there meanwhile
                (Path(aside) / "whole").rename(folder)
    return folder
