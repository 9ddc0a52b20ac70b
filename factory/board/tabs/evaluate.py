"""Evaluate: `factory evaluate` of a run; what a run or an evaluation measured, and the answers that it comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, shown
from factory.board.runs import Shown
from factory.board.said import Words, words
from factory.board.tabs import form, listed
from factory.evaluation.rows import PERPLEXITY, read
from factory.line import Overrides, spelt
from factory.run.folder import RunFolder

if TYPE_CHECKING:
    from factory.board.page import Page

_ANSWERS = 200  # rows that are listed


def build(page: "Page") -> None:
    with gr.Row():
        run = listed.one(page, listed.trained, "run", "evaluate-of")
        go = page.say(gr.Button, {"value": "evaluate_run"}, variant="primary", elem_id="evaluate-run")
    message, chosen = gr.Markdown(), gr.State(())
    _keys(page, chosen)

    def start(folder: str | None, overrides: Overrides, language: str) -> tuple[str, Any, Any]:
        if not folder or not page.runs.known(folder):
            return words(language)("no_runs"), gr.update(), gr.update()
        made = page.runs.start((f"run={spelt(folder)}", *overrides), "evaluate")
        return words(language)("started", folder=made), gr.update(selected="runs"), made

    go.click(start, [run, chosen, page.language], [message, page.selected, page.current])
    _results(page)


def _keys(page: "Page", chosen: Any) -> None:
    @page.render([page.language], [page.blocks.load, page.language.change])
    def draw(language: str) -> None:
        say = words(language)
        with gr.Accordion(say("group.evaluate"), open=True), gr.Row(elem_classes="f-form"):
            for each in fields.fields("evaluate", page.planner(()).tree or {}):
                with gr.Column(min_width=260):
                    form.draw(each, say, chosen, is_set=False)


def _results(page: "Page") -> None:
    of = listed.one(page, _measured, "results_of", "results-of")
    figures, answers = gr.HTML(elem_id="figures"), gr.HTML(elem_id="answers")

    def results(folder: str | None, language: str) -> tuple[str, str]:
        return _shown(page, folder, words(language))

    gr.on([of.change, page.language.change], results, [of, page.language], [figures, answers], show_progress="hidden")


def _measured(each: Shown) -> bool:
    return RunFolder(each.folder).evaluation.is_dir()


def _shown(page: "Page", folder: str | None, say: Words) -> tuple[str, str]:
    """What was measured in a run, and its rows."""
    report = page.runs.report(folder) if folder and page.runs.known(folder) else None
    if not folder or report is None:
        return shown.waiting(say("no_results")), ""
    rows = _answers(RunFolder(folder).evaluation) or report.get("samples") or []
    return shown.figures(report, say), shown.answers(rows, say)


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Of the files that have some: perplexity is of rows that nobody answered."""
    files = [path for path in sorted(folder.glob("*.jsonl")) if not path.stem.startswith(PERPLEXITY)]
    return [row for path in files for row in read(path)][:_ANSWERS]
