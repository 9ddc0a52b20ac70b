"""Preview: the page of `factory preview`, of what is configured."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from factory.board import shown
from factory.board.said import words
from factory.line import Overrides

if TYPE_CHECKING:
    from factory.board.page import Page

_ROWS = 5


def build(page: "Page") -> None:
    with gr.Row():
        show = page.say(gr.Button, {"value": "preview_run"}, variant="primary", elem_id="preview-run")
        rows = gr.Slider(1, 50, value=_ROWS, step=1, label="preview.rows", elem_id="preview-rows")
    out = gr.HTML(elem_id="preview")

    def preview(overrides: Overrides, rows: int, language: str) -> Iterator[str]:
        yield shown.waiting(words(language)("preview_wait"))
        place = page.children.aside("preview.html")
        done = page.children.run(["preview", *overrides, f"preview.html={place}", f"preview.rows={rows}"])
        try:
            yield (
                shown.inner_page(place.read_text("utf-8"), words(language)("tab.preview"))
                if place.is_file()
                else shown.log(done.text)
            )
        finally:
            place.unlink(missing_ok=True)

    show.click(preview, [page.overrides, rows, page.language], out)
