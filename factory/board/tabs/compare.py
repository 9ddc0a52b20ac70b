"""Compare: several methods in one sweep, and the page of `factory compare` of the runs that are ticked."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, shown
from factory.board.runs import Shown
from factory.board.said import words
from factory.board.tabs import listed
from factory.config.line import Overrides, changed
from factory.config.refusal import UserError

if TYPE_CHECKING:
    from factory.board.page import Page


def build(page: "Page") -> None:
    _sweep(page)
    _comparison(page)


def _sweep(page: "Page") -> None:
    texts = {"label": "sweep_methods", "info": "sweep_info"}
    every = list(fields.options("method", page.planner.config_dirs))
    methods = page.say(gr.CheckboxGroup, texts, every, elem_id="sweep-methods")
    sweep = page.say(gr.Button, {"value": "sweep_run"}, elem_id="sweep-run")
    message = gr.Markdown(elem_id="sweep-message")

    def start(chosen: list[str], overrides: Overrides, language: str) -> tuple[str, Any, Any]:
        say = words(language)
        if len(chosen) < 2:
            return say("sweep_none"), gr.update(), gr.update()
        if outside := page.planner.outside(overrides):
            return shown.as_printed(UserError(*outside)), gr.update(), gr.update()
        folder = page.runs.sweep(changed(overrides, "method", ",".join(chosen)))
        return listed.begun(page, folder, say), gr.update(selected="runs"), folder

    sweep.click(start, [methods, page.overrides, page.language], [message, page.selected, page.current])


def _comparison(page: "Page") -> None:
    ticked = page.say(gr.Dropdown, {"label": "compare_runs"}, [], multiselect=True, elem_id="compare-runs")
    show = page.say(gr.Button, {"value": "compare_run"}, variant="primary", elem_id="compare-run")
    logged, out = gr.HTML(elem_id="compare-logged"), gr.HTML(elem_id="comparison")

    def there(language: str, chosen: list[str], current: str | None) -> Any:
        """The sweep that was started last is chosen until others are."""
        found = listed.named(page, words(language), _can_be_compared)
        folders = [folder for _, folder in found]
        kept = [folder for folder in chosen if folder in folders]
        return gr.update(choices=found, value=kept or [folder for folder in folders if folder == current])

    again = [page.tab.select, page.language.change]
    gr.on(again, there, [page.language, ticked, page.current], ticked, show_progress="hidden")

    def compare(folders: list[str], language: str) -> Iterator[tuple[str, str]]:
        say = words(language)
        folders = [folder for folder in folders or () if page.runs.known(folder)]
        if len(folders) < 2 and not any(map(_is_sweep, folders)):
            yield "", shown.waiting(say("compare_none"))
            return
        where = shown.in_mlflow(_logged(page, folders), say)
        yield where, shown.waiting(say("compare_wait"))
        html, printed = page.children.page(["compare", *folders], "compare.out")
        yield where, shown.log(printed) if html is None else shown.inner_page(html, say("tab.compare"))

    show.click(compare, [ticked, page.language], [logged, out])


def _can_be_compared(each: Shown) -> bool:
    return each.verb != "export" and each.state in ("finished", "failed", "interrupted")


def _is_sweep(folder: str) -> bool:
    return not (Path(folder) / "plan.yaml").is_file()


def _logged(page: "Page", folders: list[str]) -> Iterator[tuple[str, str | None]]:
    for folder in folders:
        jobs = sorted(map(str, Path(folder).glob("*/"))) if _is_sweep(folder) else [folder]
        yield from filter(None, map(page.runs.in_mlflow, jobs))
