"""One data set: its file, its first rows, the format that its columns fit."""

import json
import os
from itertools import islice
from pathlib import Path

from factory import registry
from factory.data import formats, read
from factory.facts import DataFacts
from factory.refusal import did_you_mean, refuse
from factory.schema import Source

READ_WHOLE = 16 * 2**20  # bytes: smaller files are read to the end while planning
PEEK_ROWS = 100
_PACKAGE_PREFIX = "package:"


def source_path(path: str, stage: str) -> Path:
    """The file behind a source's path; `package:` and `{kind}` (of the stage's records) resolved."""
    kind = registry.spec("stages", stage).KIND
    if path.startswith(_PACKAGE_PREFIX):
        return Path(__file__).parents[1] / path.removeprefix(_PACKAGE_PREFIX).replace("{kind}", kind)
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises where there is no such user


def look_at_data(name: str, source: Source, stage: str) -> DataFacts:
    setting = f"data.sources.{name}.path={source.path}"
    if source.path is None:
        raise refuse("data-missing", setting.replace("=None", "=null"), "no file is named", hint="")
    path = source_path(source.path, stage)
    if not path.is_file():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise refuse(
            "data-missing",
            setting,
            "there is no such file" if not path.exists() else "it is a folder",
            hint=did_you_mean(str(path), near),
        )
    if path.suffix not in read.SUFFIXES:
        raise refuse(
            "data-file-type",
            setting,
            f"files of type {path.suffix or '(none)'} are not read",
            known=", ".join(read.SUFFIXES),
        )
    return _peek(name, source, path, setting, registry.spec("stages", stage).KIND)


def _peek(name: str, source: Source, path: Path, setting: str, kind: formats.Kind) -> DataFacts:
    size = path.stat().st_size
    peeked = size > READ_WHOLE and read.has_lines(path)
    rows = list(islice(read.rows(path), PEEK_ROWS if peeked else None))
    if not rows:
        raise refuse("data-empty", setting, f"there is no row in it ({size:,} bytes)")
    own = {column for row in rows[:PEEK_ROWS] for column in row}
    rows = [formats.rename(row, source.columns) for row in rows[:PEEK_ROWS]] + rows[PEEK_ROWS:]
    columns = {column for row in rows[:PEEK_ROWS] for column in row}
    format = formats.recognise(columns, kind) if source.format == "auto" else source.format
    missing = set(formats.FORMATS[format].columns) - columns if format else set()
    missing |= set(source.columns.values()) - own
    _refuse_unknown_columns(name, source)
    if format is None or missing:
        known = "; ".join(f"{name}: {', '.join(found.columns)}" for name, found in formats.FORMATS.items())
        raise refuse(
            "data-format",
            f"data.sources.{name}.format={source.format}",
            f"the columns {', '.join(sorted(columns)) or '(none)'} "
            + (f"lack {', '.join(sorted(missing))}" if missing else "fit no known format"),
            known=known,
            name=name,
        )
    return DataFacts(
        path=str(path.resolve()),
        format=format,
        kind=formats.FORMATS[format].kind,
        columns=tuple(sorted(columns)),
        rows=_estimated_rows(path, size) if peeked else len(rows),
        peeked=peeked,
        bytes=size,
        longest_row_bytes=max(len(json.dumps(row, ensure_ascii=False).encode()) for row in rows),
        sha256=read.digest(path),
    )


def _refuse_unknown_columns(name: str, source: Source) -> None:
    for standard in set(source.columns) - formats.STANDARD:
        raise refuse(
            "unknown-column",
            f"data.sources.{name}.columns={standard}",
            "no format has such a column",
            known=", ".join(sorted(formats.STANDARD)),
            hint=did_you_mean(standard, formats.STANDARD),
        )


def _estimated_rows(path: Path, size: int) -> int:
    with path.open("rb") as file:
        start = file.read(2**20)
    return max(1, round(start.count(b"\n") * size / len(start)))
