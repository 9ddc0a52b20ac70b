"""Preview: the page of `factory preview`, of what is configured."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from factory.board import shown
from factory.board.said import words
from factory.config.line import Overrides, flags

if TYPE_CHECKING:
    from factory.board.page import Page

_ROWS = 5


def build(page: "Page") -> None:
    with gr.Row():
        show = page.say(gr.Button, {"value": "preview_run"}, variant="primary", elem_id="preview-run")
        rows = gr.Slider(1, 50, value=_ROWS, step=1, label="preview.rows", elem_id="preview-rows")
    out = gr.HTML(elem_id="preview")

    def preview(overrides: Overrides, rows: int, language: str) -> Iterator[str]:
        say = words(language)
        if outside := page.planner.outside(overrides):
            yield shown.problems(outside, say)
            return
        yield shown.waiting(say("preview_wait"))
        asked = ["preview", *flags(page.planner.config_dirs), *overrides, f"preview.rows={rows}"]
        html, printed = page.children.page(asked, "preview.html")
        yield shown.log(printed) if html is None else shown.inner_page(html, say("tab.preview"))

    showing = show.click(preview, [page.overrides, rows, page.language], out)
    page.overrides.change(lambda: "", None, out, show_progress="hidden", cancels=[showing])  # it was of others
