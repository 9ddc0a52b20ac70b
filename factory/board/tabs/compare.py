"""Compare: several methods in one sweep, and the page of `factory compare` of the runs that are ticked."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, shown
from factory.board.line import Overrides, changed
from factory.board.said import words
from factory.board.tabs.train import named

if TYPE_CHECKING:
    from factory.board.page import Page


def build(page: "Page") -> None:
    with gr.Row():
        methods = page.say(
            gr.Dropdown(list(fields.options("method")), multiselect=True, label=page.text("sweep_methods"),
                        info=page.text("sweep_info"), elem_id="sweep-methods", scale=4),
            label="sweep_methods", info="sweep_info",
        )  # fmt: skip
        sweep = page.say(gr.Button(page.text("sweep_run"), elem_id="sweep-run", scale=1), value="sweep_run")
    message = gr.Markdown(elem_id="sweep-message")
    ticked = page.say(
        gr.Dropdown([], multiselect=True, label=page.text("compare_runs"), elem_id="compare-runs"),
        label="compare_runs",
    )
    show = page.say(gr.Button(page.text("compare_run"), variant="primary", elem_id="compare-run"), value="compare_run")
    out = gr.HTML(elem_id="comparison")

    def finished(language: str, chosen: list[str]) -> Any:
        return gr.update(choices=named(page.runs, words(language), ("finished", "failed")), value=chosen)

    page.tab.select(finished, [page.language, ticked], ticked, show_progress="hidden")

    def start(chosen: list[str], overrides: Overrides, language: str) -> tuple[str, Any, Any]:
        say = words(language)
        if len(chosen) < 2:
            return say("sweep_none"), gr.update(), gr.update()
        folder = page.runs.sweep(changed(overrides, "method", ",".join(chosen)))
        return say("started", folder=folder), gr.update(selected="runs"), folder

    sweep.click(start, [methods, page.overrides, page.language], [message, page.selected, page.current])

    def compare(folders: list[str], language: str) -> Iterator[str]:
        say = words(language)
        folders = [folder for folder in folders or () if page.runs.known(folder)]
        if len(folders) < 2 and not any(is_sweep(folder) for folder in folders):
            yield shown.waiting(say("compare_none"))
            return
        yield shown.waiting(say("compare_wait"))
        place = page.children.aside("compare.html")
        done = page.children.run(["compare", *folders, f"compare.html={place}"])
        try:
            yield shown.inner_page(place.read_text("utf-8")) if place.is_file() else shown.log(done.text)
        finally:
            place.unlink(missing_ok=True)

    show.click(compare, [ticked, page.language], out)


def is_sweep(folder: str) -> bool:
    return not (Path(folder) / "plan.yaml").is_file()
