"""The verb: what is asked for, where it goes, and the writing."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from factory.compare import written
from factory.compare.comparison import Comparison, compared
from factory.compare.found import asked, found
from factory.compare.page import page
from factory.config.refusal import refuse
from factory.config.settings import Compare, Tracking
from factory.run.folder import write_whole

_FILE_WIDTH = 160  # columns of a text that goes to a file
# the names' ends of each format, the first of which a format is known by
SUFFIXES = {
    "text": (".txt",),
    "markdown": (".md", ".markdown"),
    "csv": (".csv",),
    "json": (".json",),
    "html": (".html", ".htm"),
}


def show(words: Sequence[str], wanted: Compare, tracking: Tracking) -> int:
    """Finds the runs, compares them, and prints or writes it. Raises UserError."""
    form = chosen(wanted)
    made = compared(found(asked(words), tracking))
    if form == "text":
        _as_text(made, wanted.out)
    elif wanted.out is None:
        print(_WRITERS[form](made), end="")
    else:
        write_whole(Path(wanted.out), _WRITERS[form](made))
    if wanted.out is not None:
        print(f"Written to {wanted.out}")
    return 0


def chosen(wanted: Compare) -> str:
    """The format, by the name of the file where it is not set. Raises UserError where nothing can be written there."""
    suffix = Path(wanted.out).suffix.lower() if wanted.out else ""
    by_name = next((form for form, ends in SUFFIXES.items() if suffix in ends), None)
    form = wanted.format if wanted.format != "auto" else by_name or "text"
    if wanted.out and (wrong := _unwritable(Path(wanted.out), None if wanted.format == "auto" else SUFFIXES[form])):
        ends = SUFFIXES[form] if wanted.format != "auto" else tuple(ends[0] for ends in SUFFIXES.values())
        raise refuse(
            "compare-out",
            f"compare.out={wanted.out}",
            wrong,
            because="a name that says another format would mislead whoever opens it, and nothing else is written over",
            fix=f"name a file in a folder that is there, ending in {' or '.join(ends)}",
        )
    return form


def _unwritable(path: Path, ends: tuple[str, ...] | None) -> str | None:
    every = tuple(end for ends in SUFFIXES.values() for end in ends)
    if path.suffix.lower() not in (ends or every):
        return f"its name does not end in {' or '.join(ends)}" if ends else "its name says no format"
    if path.is_dir():
        return "it is a folder"
    if not path.parent.is_dir():
        return "there is no such folder"
    return None if os.access(path.parent, os.W_OK) else "its folder cannot be written"


def _as_text(made: Comparison, out: str | None) -> None:
    from factory.compare.terminal import shown
    from factory.run.screen import console

    file = io.StringIO() if out else None
    terminal = console(file=file, width=_FILE_WIDTH if out else None)
    for each in shown(made, terminal.width):
        terminal.print(each)
    if out and file:
        write_whole(Path(out), file.getvalue())


_WRITERS: dict[str, Callable[[Comparison], str]] = {
    "markdown": written.markdown,
    "csv": written.table,
    "json": written.as_json,
    "html": page,
}
