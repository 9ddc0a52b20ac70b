"""Export: `factory export` of a run, with what it prints while it works."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import gradio as gr

from factory.board import shown
from factory.board.said import words
from factory.board.tabs import listed
from factory.config.line import spelt
from factory.config.settings import Export

if TYPE_CHECKING:
    from factory.board.page import Page


def build(page: "Page") -> None:
    with gr.Row():
        run = listed.one(page, listed.finished, "run", "export-of")
        forms = list(get_args(get_type_hints(Export)["format"]))
        form = page.say(gr.Dropdown, {"label": "export_format"}, forms, elem_id="export-format")
        place = page.say(gr.Textbox, {"label": "export_dir"}, elem_id="export-dir")
    go = page.say(gr.Button, {"value": "export_run"}, variant="primary", elem_id="export-run")
    state, out = gr.HTML(elem_id="export-state"), gr.HTML(elem_id="export-log")

    run.change(lambda folder: f"exports/{Path(folder).name}" if folder else "", run, place, show_progress="hidden")

    def export(folder: str, form: str, place: str, language: str) -> Iterator[tuple[str, str]]:
        say = words(language)
        if not page.runs.known(folder):
            yield shown.waiting(say("none_trained")), ""
            return
        asked = [f"export.dir={spelt(place)}", f"export.format={form}"]
        if outside := page.planner.outside(asked):
            yield "", shown.problems(outside, say)
            return
        for done in page.children.lines(["export", f"run={spelt(folder)}", *asked]):
            ended = say("done") if done.code == 0 else say("failed", code=done.code)
            yield shown.waiting(say("export_wait") if done.code == -1 else ended), shown.log(done.text)

    go.click(export, [run, form, place, page.language], [state, out])
