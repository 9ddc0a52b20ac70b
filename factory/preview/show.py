"""The preview verb: what is asked for, where it may be written, and the printing."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from factory.config.refusal import Refusal, UserError, refusal
from factory.config.settings import Preview
from factory.plan.plan import Plan

FAILED = 1
_SUFFIXES = (".html", ".htm")


def unusable(asked: Any) -> list[Refusal]:
    """What is wrong with the page's place. `asked` are the keys of `preview` as they were composed."""
    path = asked.get("html") if isinstance(asked, dict) else None
    wrong = unwritable(Path(path)) if isinstance(path, str) else None
    return (
        [
            refusal(
                "preview-page",
                f"preview.html={path}",
                wrong,
                because="a preview's page is one HTML file, and nothing else is written over",
                fix="name a file that ends in .html, in a folder that is there and can be written",
            )
        ]
        if wrong
        else []
    )


def unwritable(page: Path) -> str | None:
    """Why there can be no page, as far as it shows beforehand. A file that is no page is never written over."""
    if page.suffix.lower() not in _SUFFIXES:
        return "its name does not end in .html"
    try:
        if page.is_dir():
            return "it is a folder"
        if not page.parent.is_dir():
            return "there is no such folder"
    except OSError as error:  # a name that is too long
        return f"it cannot be written ({error.strerror})"
    return None if os.access(page.parent, os.W_OK) else "its folder cannot be written"


def show(plan: Plan, asked: Any) -> int:
    """Prints the preview, and writes the page if one is asked for."""
    from factory.preview import page
    from factory.preview.gather import preview
    from factory.preview.samples import to_json
    from factory.preview.terminal import Terminal
    from factory.run.screen import Screen, console

    wanted = Preview.model_validate(asked)
    screen = Screen()
    screen.console = console(stderr=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a data function or a library prints is no part of it
            try:
                found = preview(plan, wanted.rows, lambda done: screen.progress("align", done, done))
            finally:
                screen.stop_progress()
        if wanted.html is not None:
            page.write(found, Path(wanted.html))
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    if wanted.format == "json":
        print(json.dumps(to_json(found)))  # in ASCII: what moves a cursor stays escaped
    else:
        Terminal(console()).print(found)
    if wanted.html is not None:
        screen.print(f"The page is {wanted.html}", soft_wrap=True)
    return 0
