"""Evaluate: `factory evaluate` of a run, its figures, and the answers that they come from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, shown
from factory.board.line import Overrides, spelt
from factory.board.said import Words, words
from factory.board.tabs import form
from factory.board.tabs.train import named
from factory.evaluation.rows import read

if TYPE_CHECKING:
    from factory.board.page import Page

_ANSWERS = 200  # rows that are listed


def build(page: "Page") -> None:
    with gr.Row():
        run = page.say(gr.Dropdown([], label=page.text("run"), elem_id="evaluate-of"), label="run")
        go = page.say(gr.Button(page.text("evaluate_run"), variant="primary", elem_id="evaluate-run"),
                      value="evaluate_run")  # fmt: skip
    message, chosen = gr.Markdown(), gr.State(())

    @gr.render([page.language], triggers=[page.blocks.load, page.language.change], show_progress="hidden")
    def draw(language: str) -> None:
        say = words(language)
        with gr.Accordion(say("group.evaluate"), open=True), gr.Row(elem_classes="f-form"):
            for each in fields.fields("evaluate", page.planner(()).tree or {}):
                with gr.Column(min_width=260):
                    form.draw(each, say, chosen, is_set=False)

    figures = gr.HTML(elem_id="figures")
    answers = gr.Dataframe(headers=["#"], interactive=False, wrap=True, elem_id="answers", max_height=460)

    def runs_of(language: str, folder: str | None) -> Any:
        return gr.update(choices=named(page.runs, words(language), ("finished", "interrupted")), value=folder)

    page.tab.select(runs_of, [page.language, run], run, show_progress="hidden")

    def start(folder: str | None, overrides: Overrides, language: str) -> tuple[str, Any, Any]:
        if not folder or not page.runs.known(folder):
            return words(language)("no_runs"), gr.update(), gr.update()
        made = page.runs.start((f"run={spelt(folder)}", *overrides), "evaluate")
        return words(language)("started", folder=made), gr.update(selected="runs"), made

    go.click(start, [run, chosen, page.language], [message, page.selected, page.current])
    gr.on([run.change, page.language.change], lambda folder, language: _shown(page, folder, words(language)),
          [run, page.language], [figures, answers], show_progress="hidden")  # fmt: skip


def _shown(page: "Page", folder: str | None, say: Words) -> tuple[str, Any]:
    """What was measured in a run, and its rows."""
    report = page.runs.report(folder) if folder and page.runs.known(folder) else None
    if not folder or report is None:
        return "", gr.update(value=[])
    rows = [row for path in sorted((Path(folder) / "evaluation").glob("*.jsonl")) for row in read(path)]
    listed = [{**row, **row.get("scores", {})} for row in rows[:_ANSWERS]]
    columns = [name for name in dict.fromkeys(name for row in listed for name in row) if name != "scores"]
    values = [[str(row.get(name, "")) for name in columns] for row in listed]
    return shown.figures(report, say), gr.update(headers=columns or ["-"], value=values)
