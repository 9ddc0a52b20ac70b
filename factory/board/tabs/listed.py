"""Lists of runs to choose from. Which there are is looked up whenever the list's tab is opened."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board.runs import Shown
from factory.board.said import Words, words
from factory.config.line import name_of

if TYPE_CHECKING:
    from factory.board.page import Page

Wanted = Callable[[Shown], bool]


def trained(each: Shown) -> bool:
    """It has a model."""
    return each.verb == "train" and each.state in ("finished", "interrupted")


def finished(each: Shown) -> bool:
    """It has a model, whole."""
    return each.verb == "train" and each.state == "finished"


def name(each: Shown, say: Words) -> str:
    when = datetime.fromtimestamp(each.started)
    verb = "" if each.verb == "train" else f"{each.verb} "
    chosen = sorted(each.overrides, key=lambda text: "." in name_of(text))  # the method stands before its numbers
    said = f"{verb}{' '.join(chosen) or '-'}"
    return f"{say(f'state.{each.state}')} · {when:%m-%d %H:%M} · {said} · {each.folder}"


def begun(page: "Page", folder: str, say: Words) -> str:
    """What is said of a run that was just asked for."""
    return say("queued" if page.runs.state(folder) == "queued" else "started", folder=folder)


def named(page: "Page", say: Words, wanted: Wanted) -> list[tuple[str, str]]:
    return [(name(each, say), each.folder) for each in page.runs.all() if wanted(each)]


def kept(found: list[tuple[str, str]], chosen: str | None, default: str | None) -> Any:
    """A dropdown of these, with what was chosen for as long as that is there."""
    return gr.update(choices=found, value=chosen if chosen in [folder for _, folder in found] else default)


def one(page: "Page", wanted: Wanted, text: str, elem_id: str) -> Any:
    """A dropdown of the runs that are wanted. What was started last is chosen once it is there, else the newest."""
    made = page.say(gr.Dropdown, {"label": text}, [], elem_id=elem_id, min_width=260)
    followed = gr.State(None)

    def there(language: str, chosen: str | None, current: str | None, before: str | None) -> tuple[Any, str | None]:
        found = named(page, words(language), wanted)
        folders = [folder for _, folder in found]
        if current != before and current in folders:
            chosen, before = current, current
        return kept(found, chosen, next(iter(folders), None)), before

    again, given = [page.tab.select, page.language.change], [page.language, made, page.current, followed]
    gr.on(again, there, given, [made, followed], show_progress="hidden")
    return made
