"""Evaluate: `factory evaluate` of a run; what a run or an evaluation measured, and the answers that it comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import fields, shown
from factory.board.runs import Shown
from factory.board.said import Words, words
from factory.board.tabs import form, listed
from factory.config.line import Overrides, name_of, spelt
from factory.config.refusal import UserError
from factory.evaluation.rows import PERPLEXITY, read
from factory.run.folder import RunFolder

if TYPE_CHECKING:
    from factory.board.page import Page

_ANSWERS = 200  # rows that are listed


def build(page: "Page") -> None:
    with gr.Row():
        run = listed.one(page, listed.trained, "run", "evaluate-of")
        go = page.say(gr.Button, {"value": "evaluate_run"}, variant="primary", elem_id="evaluate-run")
    message, chosen = gr.Markdown(elem_id="evaluate-message"), gr.State(())
    _keys(page, run, chosen)

    def start(folder: str | None, overrides: Overrides, language: str) -> tuple[str, Any, Any]:
        say = words(language)
        if not folder or not page.runs.known(folder):
            return say("none_trained"), gr.update(), gr.update()
        if outside := page.planner.outside(overrides):
            return shown.as_printed(UserError(*outside)), gr.update(), gr.update()
        made = page.runs.start((f"run={spelt(folder)}", *overrides), "evaluate")
        return listed.begun(page, made, say), gr.update(selected="runs"), made

    go.click(start, [run, chosen, page.language], [message, page.selected, page.current], **form.ONE_BY_ONE)
    _results(page)


def _keys(page: "Page", run: Any, chosen: Any) -> None:
    """With the values that the run was made with, which hold for what is left alone here."""
    of = gr.State(None)  # the run that they are of

    def another(folder: str | None, of: str | None, overrides: Overrides) -> tuple[Overrides, str | None]:
        return overrides if folder == of else (), folder

    run.change(another, [run, of, chosen], [chosen, of], show_progress="hidden", **form.ONE_BY_ONE)

    @page.render([of, chosen, page.language], [page.blocks.load, of.change, page.language.change])
    def draw(folder: str | None, overrides: Overrides, language: str) -> None:
        say, given = words(language), {name_of(text) for text in overrides}
        with gr.Accordion(say("group.evaluate"), open=True), gr.Row(elem_classes="f-form"):
            for each in fields.fields("evaluate", _tree(page, folder, overrides)):
                with gr.Column(min_width=260):
                    form.draw(each, say, chosen, is_set=each.path in given, formed=folder)


def _tree(page: "Page", folder: str | None, overrides: Overrides) -> dict[str, Any]:
    """A run's settings with these over them, or those by default where it can't be composed here."""
    try:
        return page.planner.composed((*(page.runs.overrides(folder) or ()), *overrides)).tree
    except UserError:
        return page.planner.composed(()).tree


def _results(page: "Page") -> None:
    of = listed.one(page, _measured, "results_of", "results-of")
    figures, answers = gr.HTML(elem_id="figures"), gr.HTML(elem_id="answers")

    def results(folder: str | None, language: str) -> tuple[str, str]:
        return _shown(page, folder, words(language))

    anew = [of.change, page.tab.select, page.language.change]  # the run may have ended since
    gr.on(anew, results, [of, page.language], [figures, answers], show_progress="hidden")


def _measured(each: Shown) -> bool:
    return RunFolder(each.folder).evaluation.is_dir()


def _shown(page: "Page", folder: str | None, say: Words) -> tuple[str, str]:
    """What was measured in a run, and its rows."""
    report = page.runs.report(folder) if folder and page.runs.known(folder) else None
    if not folder or report is None:
        return shown.waiting(say("no_results")), ""
    rows = _answers(RunFolder(folder).evaluation) or report.get("samples") or []
    return shown.figures(report, say), shown.answers(rows, _ANSWERS, say)


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Of the files that have some: perplexity is of rows that nobody answered."""
    files = [path for path in sorted(folder.glob("*.jsonl")) if not path.stem.startswith(PERPLEXITY)]
    return [row for path in files for row in read(path)]
