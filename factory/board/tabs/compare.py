"""Compare: the page of `factory compare`, of the runs that are ticked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import shown
from factory.board.said import words
from factory.board.tabs.train import named

if TYPE_CHECKING:
    from factory.board.page import Page


def build(page: "Page") -> None:
    ticked = page.say(
        gr.Dropdown([], multiselect=True, label=page.text("compare_runs"), elem_id="compare-runs"),
        label="compare_runs",
    )
    show = page.say(gr.Button(page.text("compare_run"), variant="primary", elem_id="compare-run"), value="compare_run")
    out = gr.HTML(elem_id="comparison")

    def finished(language: str, chosen: list[str]) -> Any:
        return gr.update(choices=named(page.runs, words(language), ("finished",)), value=chosen)

    page.selected.change(finished, [page.language, ticked], ticked, show_progress="hidden")

    def compare(folders: list[str], language: str) -> Iterator[str]:
        say = words(language)
        if len(folders) < 2:
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
