"""One data set: where its rows come from, the first of them, the format that they fit."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from factory.config import registry
from factory.config.refusal import UserError, did_you_mean, refuse
from factory.config.settings import Source
from factory.data import formats, function, hub, read
from factory.data.formats import FORMATS, BadRow, Record
from factory.data.read import Broken, Row
from factory.data.read.wrong import rows_below, wrapped
from factory.data.record import MEDIA
from factory.plan.facts import DataFacts
from factory.plan.inspect.model import local

_data_empty = partial(refuse, "data-empty", because="there is nothing to train on", fix="fill it, or set another path")

READ_WHOLE = 16 * 2**20  # bytes: what takes less, on the disk and as rows, is read to the end while planning
PEEK_ROWS = 100
UNKNOWN = 0  # rows, where nobody says how many there are
_PACKAGE_PREFIX = "package:"
_STDIN = "-"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PATTERN = re.compile(r"[*?\[]")
_PATTERNS = "patterns are not read: of several files name the folder that holds them alone; "
_HUB_ID = re.compile(r"[\w-]+/[\w-]+")  # of those without a dot, which a file has
_EXAMPLE = "{instruction: question, output: answer}"
_SHOWING = tuple(f'"{kind}'.encode() for kind in MEDIA.values())  # how a key or a type in such a row begins
_TOLD = 20  # columns that are named
_COMPARED = 20  # files of a folder, and rows of each, whose columns are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was seen of the rows: the first ones, how many there are, and how large the largest is as JSON."""

    path: str
    first: list[Row]
    showing: list[Row]
    rows: int
    peeked: bool
    bytes: int
    longest: int
    sha256: str | None
    broken: UserError | None = None
    lines: int = 0  # of a text file that is one document
    mended: int = 0  # rows whose line ends in cells are read as \n
    files: dict[str, list[Row]] = field(default_factory=dict)  # of a folder: the first rows of the first files


def source_path(path: str, stage: str) -> Path:
    """The file behind a source's path; `package:` and `{kind}` (of the stage's records) resolved."""
    kind = registry.spec("stages", stage).KIND
    if path.startswith(_PACKAGE_PREFIX):
        return Path(__file__).parents[2] / path.removeprefix(_PACKAGE_PREFIX).replace("{kind}", kind)
    return local(path)


def look_at_data(name: str, source: Source, stage: str, options: Sequence[Path] = ()) -> DataFacts:
    """The facts of a set that is no catalogue. Raises UserError. `options`: where those of the user's own lie."""
    assert source.origin != "catalogue", "catalogue.expand makes sets of its entries"
    setting = f"data.sources.{name}.path={source.path}"
    if not source.path:  # an empty one would be the folder that the command is typed in: a variable of a shell, unset
        wrong = "no file is named" if source.origin == "file" else "nothing is named"
        where = read.unset(name) if source.path is None else setting
        raise _data_missing(where, wrong, hint="", known=", ".join(read.SUFFIXES))
    _refuse_unread(name, source)
    if source.origin == "hub":
        return _of_hub(name, source, setting)
    if source.origin == "function":
        found = _look_at_function(source.path, source.rows)
    else:
        found = _look_at_files(source.path, stage, setting, options)
    if not found.first and found.broken:
        raise found.broken
    if not found.first:
        raise _data_empty(setting, f"there is no row in it ({found.bytes:,} bytes)")
    return _facts(name, source, stage, found)


def _refuse_unread(name: str, source: Source) -> None:
    """Raises UserError for what is said of the set and would be ignored."""
    _refuse_unknown(f"data.sources.{name}.columns", source.columns, formats.STANDARD, "{instruction: question}")
    _refuse_unknown(f"data.sources.{name}.tags", source.tags, formats.TAGS, "{role_tag: speaker}")
    if source.origin == "file" and source.rows is not None:
        wrong = "the rows of a file are counted"
        raise _data_origin(f"data.sources.{name}.rows={source.rows}", wrong, name=name)
    if source.origin == "hub":
        return
    for key, nothing in (("subset", None), ("split", "train"), ("revision", None)):
        value = getattr(source, key)
        if value != nothing:
            wrong = f"its rows come from a {source.origin}"
            raise _data_origin(f"data.sources.{name}.{key}={value}", wrong, name=name)


def _refuse_unknown(setting: str, names: Iterable[str], known: Iterable[str], example: str) -> None:
    for unknown in sorted(set(names) - set(known)):
        what = setting.rpartition(".")[2].removesuffix("s")
        raise refuse(
            f"unknown-{what}",
            f"{setting}={unknown}",
            f"there is no such {what}",
            because=f"the standard {what}s are {', '.join(sorted(known))}",
            fix=f"{did_you_mean(unknown, known)}write the standard name first, as in {example}",
        )


def _of_hub(name: str, source: Source, setting: str) -> DataFacts:
    """What the option says: a plan needs no network."""
    assert source.path is not None
    hub.check_id(source.path, setting)
    if source.format == "auto":
        where = f"data.sources.{name}.format=auto"
        raise refuse(
            "hub-undeclared",
            where,
            "the columns are not known before the set is read",
            because="a plan needs no network, so the option says what the set's page shows",
            fix="set it (the set's page shows the columns), or download the set and use data=file",
        )
    format = FORMATS[source.format]
    return DataFacts(
        source=source,
        path=source.path,
        format=source.format,
        kind=format.kind,
        columns=tuple(sorted({*source.columns.values(), *format.columns} - source.columns.keys())),
        rows=source.rows or UNKNOWN,
        peeked=True,
        bytes=0,
        longest_row_bytes=sys.maxsize,
        sha256=None,
        tools="tools" in source.columns,
        media=tuple(column for column in MEDIA if column in source.columns),
    )


def _of_hub_instead(given: str, source: str) -> str:
    """How a set of the hub is named, where this may be one."""
    asked = f"{source}.origin=hub {source}.format=FORMAT"
    return f"add {asked} for the hub's {given}, or " if _HUB_ID.fullmatch(given) else ""


def _missing(given: str, path: Path, setting: str, options: Sequence[Path]) -> UserError:
    """With the path that was tried, and where a file lies that may be meant."""
    key = setting.partition("=")[0]
    hint = _beside_option(given, key, options) or (_PATTERNS if _PATTERN.search(given) else read.near(path))
    hint = hint or _of_hub_instead(given, key.removesuffix(".path"))
    tried = "there is no such file" if path.is_absolute() else f"there is no such file as {path.absolute()}"
    return _data_missing(setting, tried, hint=hint, known=", ".join(read.SUFFIXES))


def _beside_option(given: str, key: str, options: Sequence[Path]) -> str:
    """How a file is named that lies beside the option's own: what is relative to that folder is not read there."""
    found = next((folder / given for folder in options if (folder / given).exists()), None)
    why = "a path is relative to the folder in which the command is typed, and not to the option's"
    return f"set {key}={found} ({why}), or " if found else ""


def _look_at_files(given: str, stage: str, setting: str, options: Sequence[Path]) -> _Found:
    if given == _STDIN:
        raise refuse(
            "data-stdin",
            setting,
            "rows are not read from standard input",
            because="the rows are read more than once, to plan and to train, and their content is part of the plan",
            fix="write them to a file first, as in: … > rows.jsonl",
        )
    if _URL.match(given):
        raise refuse(
            "data-url",
            setting,
            "a URL is not read",
            because="a plan reads what is on this machine",
            fix="download it first, and name the file; a set of the hub is named by its id",
        )
    path = source_path(given, stage)
    if not path.exists() and not path.is_symlink():
        raise _missing(given, path, setting, options)
    files = read.files(path)
    if not files:
        raise _data_empty(setting, "there is no file in it")
    sizes = {file: file.stat().st_size for file in files}
    mended = read.Mended()
    seen = _walk(read.rows(path, mended=mended), READ_WHOLE if sum(sizes.values()) <= READ_WHOLE else 0)
    rows, exact = (seen.rows, True) if seen.whole else _count(sizes)
    return _Found(
        path=str(_standing(path)),
        first=seen.first,
        showing=seen.showing,
        rows=rows,
        peeked=not exact,
        bytes=sum(sizes.values()),
        longest=seen.longest,
        sha256=read.digest(path),
        broken=seen.broken.error() if seen.broken else None,
        lines=seen.first[0]["text"].count("\n") + 1 if seen.rows == 1 and read.is_plain_text(files[0]) else 0,
        mended=mended.rows,
        files=_first_rows(files, path) if len(files) > 1 else {},
    )


def _standing(path: Path) -> Path:
    """Absolute. A link to a file stays: its own name says what kind it is, and images lie beside it."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _first_rows(files: list[Path], folder: Path) -> dict[str, list[Row]]:
    found = {}
    for file in files[:_COMPARED]:
        rows = islice(read.rows(file), _COMPARED)
        found[file.relative_to(folder).as_posix()] = [row for row in rows if not isinstance(row, Broken)]
    return found


def _count(sizes: dict[Path, int]) -> tuple[int, bool]:
    """How many rows large files have, and whether that is exact: where they do not say, the first ones tell."""
    said = {file: read.count(file) for file in sizes}
    rows = sum(count for count in said.values() if count is not None)
    left = [file for file, count in said.items() if count is None]
    if not left:
        return rows, True
    sampled, read_bytes = 0, 0
    for file in left:
        found, taken = read.sample(file, PEEK_ROWS, READ_WHOLE // 16)
        sampled, read_bytes = sampled + found, read_bytes + taken
        if read_bytes >= READ_WHOLE // 16 and sampled:
            break
    return max(1, rows + round(sampled * sum(sizes[file] for file in left) / max(1, read_bytes))), False


def _look_at_function(given: str, said: int | None) -> _Found:
    """`said`: how many rows the settings say that it gives."""
    found = function.look(given)
    seen = _walk(found.rows, sys.maxsize)
    rows = found.total if found.total is not None else said or UNKNOWN
    return _Found(
        path=given,
        first=seen.first,
        showing=seen.showing,
        rows=rows,
        peeked=found.total is None,
        bytes=round(seen.bytes * max(rows, seen.rows) / max(1, seen.rows)),
        longest=seen.longest,
        sha256=found.sha256,
    )


class _Seen(NamedTuple):
    first: list[Row]
    showing: list[Row]  # the first of the others that may have images, videos or sounds
    rows: int
    bytes: int
    longest: int
    whole: bool  # whether these are all
    broken: Broken | None  # the first that is


def _walk(rows: Iterable[Row], most: int) -> _Seen:
    """Reads on until the rows take more than `most` bytes, PEEK_ROWS at the least."""
    first, showing = list[Row](), list[Row]()
    broken: Broken | None = None
    count = total = longest = 0
    for count, row in enumerate(rows, start=1):
        if isinstance(row, Broken):
            broken = broken or row
            total += len(row["line"])
        else:
            text = _text(row)
            total, longest = total + len(text), max(longest, len(text))
            if count <= PEEK_ROWS:
                first.append(row)
            elif len(showing) < PEEK_ROWS and any(word in text for word in _SHOWING):
                showing.append(row)
        if count >= PEEK_ROWS and total > most:
            return _Seen(first, showing, count, total, longest, False, broken)
    return _Seen(first, showing, count, total, longest, True, broken)


def _text(row: Row) -> bytes:
    """Its texts as JSON; an image's own bytes are no text."""
    return json.dumps(row, ensure_ascii=False, default=_as_text).encode()


def _as_text(value: Any) -> str:
    return "" if isinstance(value, bytes) else str(value)


def _recognised(columns: set[str], rows: list[Row], stage: str, tags: dict[str, str]) -> str | None:
    """As the stage would read them; but answers of which some are marked as bad are no examples to train each of.

    A stage that samples its own answers reads the prompts.
    """
    spec = registry.spec("stages", stage)
    trains_each = spec.KIND == "messages" and not registry.samples_answers(spec)
    kinds = registry.reads(spec)
    return (trains_each and formats.judged(columns, rows, tags)) or formats.recognise(columns, rows, kinds, tags)


def _facts(name: str, source: Source, stage: str, found: _Found) -> DataFacts:
    own = {column for row in found.first for column in row}
    rows = [formats.rename(row, source.columns) for row in found.first]
    columns = {column for row in rows for column in row}
    format = source.format if source.format != "auto" else _recognised(columns, rows, stage, source.tags)
    absent = sorted(set(source.columns.values()) - own)
    lacking = FORMATS[format].lacks(columns) if format else set[str]()
    if format is None or lacking or absent:
        if found.rows == 1 and source.origin == "file" and (key := rows_below(found.first[0])):
            raise wrapped(Path(found.path), key)
        if absent:
            hint = did_you_mean(absent[0], sorted(own))
            raise _no_format(name, source, stage, f"{_listed(own)} lack {', '.join(absent)}", hint=hint)
        wrong = f"lack {', '.join(sorted(lacking))}" if lacking else "fit no known format"
        example = _spelled_otherwise(own, stage) if not source.columns else None
        hint = _of_another(name, source, stage, columns, rows)
        raise _no_format(name, source, stage, f"{_listed(columns)} {wrong}", hint=hint, example=example or _EXAMPLE)
    if source.format == "auto" and format == "transcripts" and formats.without_prompt(rows, source.tags):
        wrong = f"{_listed(columns)} are of pairs, and none of them is known to hold the prompt"
        raise _no_format(name, source, stage, wrong, example=f"{{prompt: {_perhaps_prompt(rows[0])}}}")
    _refuse_others(name, format, found.files, source, stage)
    records = _records(rows, format, source)
    showing = _records([formats.rename(row, source.columns) for row in found.showing], format, source)
    return DataFacts(
        source=source,
        path=found.path,
        format=format,
        kind=FORMATS[format].kind,
        columns=tuple(sorted(columns)),
        reads=frozenset[str]().union(*map(FORMATS[format].reads, rows)),
        rows=found.rows,
        peeked=found.peeked,
        lines=found.lines,
        mended=found.mended,
        bytes=found.bytes,
        longest_row_bytes=found.longest,
        sha256=found.sha256,
        tools=any(_has_tools(record) for record in records),
        media=tuple(column for column in MEDIA if any(getattr(record, column) for record in (*records, *showing))),
        unanswered=FORMATS[format].kind == "prompts"
        and "solution" not in columns
        and not any(record.solution for record in records),
    )


def _of_another(name: str, source: Source, stage: str, columns: set[str], rows: list[Row]) -> str:
    """Where its columns are those of a format that the stage reads, and another was said: a catalogue's alpaca, say."""
    found = _recognised(columns, rows, stage, source.tags)
    if found is None or FORMATS[found].kind not in registry.reads(registry.spec("stages", stage)):
        return ""
    return f"its columns are those of {found}: set data.sources.{name}.format={found}; or "


def _refuse_others(name: str, format: str, files: dict[str, list[Row]], source: Source, stage: str) -> None:
    """Raises UserError for the first file of a folder that has other columns than the format of all needs."""
    for file, rows in files.items():
        columns = {column for row in rows for column in formats.rename(row, source.columns)}
        lacking = FORMATS[format].lacks(columns) if rows else set()
        if lacking:
            wrong = f"the folder's first rows are {format}, and {file} with {', '.join(sorted(columns)) or '(none)'} "
            raise _no_format(name, source, stage, f"{wrong}lacks {', '.join(sorted(lacking))}")


def _no_format(
    name: str, source: Source, stage: str, wrong: str, *, hint: str = "", example: str = _EXAMPLE
) -> UserError:
    where = f"data.sources.{name}.format={source.format}"
    return refuse(
        "data-format",
        where,
        wrong,
        because=f"a format is known by its columns ({_known_formats(stage)})",
        fix=f"{hint}map yours, as in data.sources.{name}.columns='{example}'",
    )


def _listed(columns: set[str]) -> str:
    """The first of them by name: an object whose keys are the rows' numbers has as many as rows."""
    told = [column if column == column.strip() != "" else repr(column) for column in sorted(columns)]
    more = f" and {len(told) - _TOLD:,} more" if len(told) > _TOLD else ""
    return f"the columns {', '.join(told[:_TOLD]) or '(none)'}{more}"


def _spelled_otherwise(columns: set[str], stage: str) -> str | None:
    """What to map where the columns are those of a format but for capitals and spaces around them."""
    alike = {column.strip().lower(): column for column in sorted(columns) if column not in formats.STANDARD}
    meant = {plain: column for plain, column in alike.items() if plain in formats.STANDARD - columns}
    if not meant or not any(not found.lacks({*columns, *meant}) for _, found in _formats(stage)):
        return None
    own = {name: column if column == column.strip() else json.dumps(column) for name, column in meant.items()}
    return f"{{{', '.join(f'{name}: {column}' for name, column in own.items())}}}"


def _perhaps_prompt(row: Row) -> str:
    """The first column that no format reads and that has a text or messages."""
    own = (column for column, value in row.items() if column not in formats.STANDARD and isinstance(value, str | list))
    return next(own, "COLUMN")


def _records(rows: list[Row], format: str, source: Source) -> list[Record]:
    """The rows that its format allows; align counts the others when all are read."""
    found = []
    for row in rows:
        try:
            found.append(formats.align(row, format, {}, source.tags))
        except BadRow:
            continue
    return found


def _has_tools(record: Record) -> bool:
    messages = (*record.prompt, *record.response, *record.rejected)
    return bool(record.tools) or any(message.get("tool_calls") for message in messages)


def _formats(stage: str) -> list[tuple[str, formats.Format]]:
    """All but prompts alone where the stage does not answer itself."""
    kinds = registry.reads(registry.spec("stages", stage))
    return [(name, found) for name, found in FORMATS.items() if found.kind != "prompts" or "prompts" in kinds]


def _known_formats(stage: str) -> str:
    return "; ".join(
        f"{name}: {' or '.join(', '.join(columns) for columns in format.needs)}" for name, format in _formats(stage)
    )


def _data_missing(setting: str, wrong: str, hint: str, known: str) -> UserError:
    return refuse(
        "data-missing",
        setting,
        wrong,
        because="there is nothing to train on",
        fix=f"{hint}set the path of a file ({known}, or one of them compressed) or of a folder of these",
    )


def _data_origin(setting: str, wrong: str, name: str) -> UserError:
    return refuse(
        "data-origin",
        setting,
        wrong,
        because=(
            "only the hub has subsets, splits, revisions and rows that nobody has counted, and the key would be ignored"
        ),
        fix=f"remove it, or set data.sources.{name}.origin=hub",
    )
