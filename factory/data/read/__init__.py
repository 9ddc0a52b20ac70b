"""Rows of every kind of source, strictly: what cannot be read is named by its file and its place in it."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config.refusal import UserError, did_you_mean, refuse
from factory.data.read import columnar, objects, opened, tables
from factory.data.read.opened import Mended, Skip, Stream
from factory.data.read.wrong import Broken
from factory.plan.plan import DataSource

__all__ = [
    "COMPRESSED",
    "SUFFIXES",
    "Broken",
    "Mended",
    "Row",
    "count",
    "digest",
    "files",
    "is_plain_text",
    "near",
    "rows",
    "sample",
    "source_digest",
    "source_rows",
    "unset",
]

Row = dict[str, Any]
_OF_DATA_PATH = ("file", "function", "llamafactory")  # options whose source takes it from there
_MOST_FILES = 20_000  # of a folder: with more it is one that was not meant, as `/`
_ALIKE = 0.6  # of names, as difflib counts
# the words in a file's or a folder's name that say a split, as `datasets` reads them
_NO_NAME = {"of", "set", "split", "data"}  # train-00000-of-00002, eval_set
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of file is read from a stream, or as one whole that can tell its number of rows."""

    stream: Callable[[Stream, Skip], Iterator[Row]] | None = None
    whole: Callable[[Path, Skip], Iterator[Row]] | None = None
    count: Callable[[Path], int] | None = None


_KINDS: dict[str, _Kind] = {
    ".json": _Kind(stream=objects.rows),
    ".jsonl": _Kind(stream=objects.lines),
    ".ndjson": _Kind(stream=objects.lines),
    ".csv": _Kind(stream=tables.rows(",")),
    ".tsv": _Kind(stream=tables.rows("\t")),
    ".txt": _Kind(stream=tables.documents),
    ".parquet": _Kind(whole=columnar.parquet, count=columnar.parquet_count),
    ".arrow": _Kind(whole=columnar.arrow, count=columnar.arrow_count),
}
SUFFIXES = tuple(_KINDS)
COMPRESSED = tuple(opened.DECOMPRESSORS)


def source_rows(source: DataSource, skip: int = 0, *, streaming: bool = False) -> Iterator[Row]:
    """The rows of a planned source from number `skip` on. `streaming`: a hub set is not downloaded whole."""
    if source.asked.origin == "file":
        return rows(Path(source.path), skip)
    if source.asked.origin == "function":
        from factory.data import function

        return function.rows(source.path, skip)
    from factory.data import hub

    asked = source.asked
    return hub.rows(source.path, asked.subset, asked.split, asked.revision, skip=skip, streaming=streaming)


def source_digest(source: DataSource) -> str | None:
    """What `PlannedSource.sha256` would be now; None for the hub. Raises UserError where it cannot be read any more."""
    if source.asked.origin == "file":
        if not Path(source.path).exists():
            raise _data_missing(f"path={source.path}", "it is gone", hint="", known=", ".join(SUFFIXES))
        return digest(Path(source.path))
    if source.asked.origin == "function":
        from factory.data import function

        return function.look(source.path).sha256
    return None


def rows(path: Path, skip: int = 0, mended: Mended | None = None) -> Iterator[Row]:
    """The rows of a file, or of a folder's files one after the other, from number `skip` on (from 0).

    A line of a .jsonl file that is no object, or of a table with other cells than its header, is there as Broken.
    `mended` counts those of tables that are not read as they stand.
    Raises UserError where a file is not UTF-8 or broken otherwise, or holds something other than objects.
    """
    passed = Skip(skip)
    for file in files(path):
        kind = _KINDS[opened.suffix(file)]
        if kind.whole:
            yield from kind.whole(file, passed)
        elif kind.stream:
            with opened.text(file, mended) as stream:
                yield from kind.stream(stream, passed)


def files(path: Path) -> list[Path]:
    """The files behind a path: itself, or all of a folder's, sorted. Hidden ones are passed over."""
    if not path.is_dir():
        found = [path]
    else:
        found = _sets_own_files(path)
        if found is None:
            found = sorted(_walk(path), key=lambda file: file.relative_to(path).parts)
            _refuse_splits(path, found)
    for file in found:
        if not file.is_file():
            raise _no_file(file, f"path={path}")
        if opened.suffix(file) not in _KINDS:
            raise _unknown_type(file, f"path={path}")
    return found


def _no_file(path: Path, setting: str) -> UserError:
    if path.is_symlink() and not path.exists():
        return refuse(
            "data-link",
            setting,
            f"{path.name} is a link to {path.readlink()}, which is not there",
            because="the set would be trained without the rows that it stands for",
            fix="repair the link, or remove it",
        )
    if not path.exists():
        return _data_missing(setting, f"there is no {path.name}", hint="", known=", ".join(SUFFIXES))
    return refuse(
        "data-special",
        setting,
        f"{path.name} is neither a file nor a folder",
        because=(
            "the rows are read more than once, to plan and to train, and a pipe or a device gives them once "
            "or never ends"
        ),
        fix="write them to a file first, as in: … > rows.jsonl",
    )


def unset(name: str) -> str:
    """What is null where a source has no path."""
    return "data.path=null" if name in _OF_DATA_PATH else f"data.sources.{name}.path=null"


def near(path: Path) -> str:
    """`did you mean X? ` for a file beside the one that is not there whose name is alike, or nothing."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    stems = {other.name.partition(".")[0]: other for other in sorted(beside) if other.exists() and other != path}
    alike = difflib.get_close_matches(path.name.partition(".")[0], stems, n=1, cutoff=_ALIKE)
    return f"did you mean {stems[alike[0]]}? " if alike else ""


def _unknown_type(path: Path, setting: str) -> UserError:
    suffix = "".join(path.suffixes[-2:] if opened.compression(path) else path.suffixes[-1:])
    wrong = f"{path.name} is of type {suffix or '(none)'}, which is not read"
    hint = did_you_mean(suffix.lower(), SUFFIXES) if suffix else ""
    return refuse(
        "data-file-type",
        setting,
        wrong,
        because=f"the reader knows {', '.join(SUFFIXES)}, and each of them compressed ({', '.join(COMPRESSED)})",
        fix=f"{hint}convert it to jsonl, one object a line, or move it out of the folder",
    )


def is_plain_text(path: Path) -> bool:
    """Whether its rows are documents, which nothing but blank lines sets apart."""
    return _KINDS[opened.suffix(path)].stream is tables.documents


def count(path: Path) -> int | None:
    """How many rows a file says it has, or None where it would have to be read for that."""
    kind = _KINDS[opened.suffix(path)]
    return kind.count(path) if kind.count else None


def sample(path: Path, rows: int, most: int) -> tuple[int, int]:
    """Reads a text file's rows until there are so many and `most` bytes of it are read: (rows, bytes).

    Both are the whole file's where that is smaller. A compressed file's bytes are those on the disk.
    """
    kind = _KINDS[opened.suffix(path)]
    assert kind.stream
    found = 0
    with opened.text(path) as stream:
        for _ in kind.stream(stream, Skip(0)):
            found += 1
            if found >= rows and stream.taken() >= most:
                return found, min(stream.taken(), path.stat().st_size)
    return found, path.stat().st_size


def digest(path: Path) -> str:
    """SHA-256 of the file's bytes; of a folder, of its files' names and bytes."""
    if path.is_dir():
        names = [[file.relative_to(path).as_posix(), digest(file)] for file in files(path)]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(path: Path) -> Iterator[Path]:
    seen, left = set[str](), _MOST_FILES
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            left -= len(names)
            if left < 0:
                raise refuse(
                    "data-many-files",
                    f"path={path}",
                    f"there are more than {_MOST_FILES:,} files in it",
                    because="each of them would be read; a folder of so many is seldom the one of a data set",
                    fix="name the folder that holds the set's files only, or join them into fewer",
                )
            yield from (Path(folder, name) for name in names if not name.startswith("."))
        seen.add(real)


def _refuse_splits(path: Path, found: list[Path]) -> None:
    """Raises UserError where files or folders whose names are else the same are of several splits."""
    named: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for file in found:
        said = _split_of(file.relative_to(path))
        if said is not None and opened.suffix(file) in _KINDS:
            rest, split = said
            named.setdefault(rest, {}).setdefault(split, []).append(file)
    for splits in named.values():
        if len(splits) < 2:
            continue
        told = ", ".join(f"{name} ({files[0].relative_to(path)})" for name, files in sorted(splits.items()))
        name = "train" if "train" in splits else min(splits)
        raise _data_splits(f"path={path}", f"it holds the splits {told}", first=_alone(path, name, splits))


def _split_of(file: Path) -> tuple[tuple[str, ...], str] | None:
    """The split that a file's name, or else that of a folder it is in, says, with what else stands in that name."""
    for part in (file.name.partition(".")[0], *reversed(file.parts[:-1])):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word and word not in _NO_NAME]
        for at, word in enumerate(words):
            if word in _SPLITS:
                return (*words[:at], "", *words[at + 1 :]), _SPLITS[word]
    return None


def _alone(path: Path, name: str, splits: dict[str, list[Path]]) -> str:
    """What to name for one of the splits: its file, or the folder that has no other's."""
    wanted = splits[name]
    folder = Path(os.path.commonpath(wanted))  # of one file itself
    others = [file for other, files in splits.items() if other != name for file in files]
    if not any(file.is_relative_to(folder) for file in others):
        return str(folder)
    return f"a folder to which you move {wanted[0].relative_to(path)} and the others of {name}"


def _raise(error: OSError) -> None:
    raise error


def _sets_own_files(path: Path) -> list[Path] | None:
    """What `datasets` says that a folder of its save_to_disk holds, or None for any other folder."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if (child / "state.json").is_file())
        wrong = f"it holds the splits {', '.join(splits) or '(none)'}"
        raise _data_splits(f"path={path}", wrong, first=path / ("train" if "train" in splits else "".join(splits[:1])))
    state = path / "state.json"
    if not state.is_file() or not (path / "dataset_info.json").is_file():
        return None
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError
        return [path / name for name in names]
    except (ValueError, KeyError, TypeError):
        raise refuse(
            "data-broken",
            f"path={state}",
            "it does not name the set's files",
            because="half a file would be trained as if it were the whole",
            fix=(
                "correct or remove that row (a json file is an array of objects, a jsonl file one object a line, "
                "a table has one header)"
            ),
        ) from None


def _data_missing(setting: str, wrong: str, hint: str, known: str) -> UserError:
    return refuse(
        "data-missing",
        setting,
        wrong,
        because="there is nothing to train on",
        fix=f"{hint}set the path of a file ({known}, or one of them compressed) or of a folder of these",
    )


def _data_splits(setting: str, wrong: str, first: Path | str) -> UserError:
    return refuse(
        "data-splits",
        setting,
        wrong,
        because="rows that were set apart to test with would be trained",
        fix=f"name one of them: {first}",
    )
