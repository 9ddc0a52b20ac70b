"""Train: the runs there are, whoever started them; curves, progress and log of one, while it goes on and afterwards."""

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import shown
from factory.board.runs import GOING_ON, Runs
from factory.board.said import Words, words
from factory.board.tabs import listed
from factory.board.tabs.form import ONE_BY_ONE
from factory.config.line import Overrides
from factory.config.refusal import UserError
from factory.config.words import duration

if TYPE_CHECKING:
    from factory.board.page import Page

_EVERY = 2.0  # seconds between two looks
# of a line of metrics.jsonl: the name there, the name of the axis, the title's text
_PLOTS = (
    ("loss", "loss", "loss"),
    ("learning_rate", "learning rate, millionths", "learning_rate"),  # labels of five digits are cut
    ("tokens_per_second", "tokens/s", "tokens_per_second"),
    ("memory", "GiB", "memory_used"),
    ("reward", "reward", "reward"),  # of stages that sample, whose loss says little: drawn where there is one
)
_SCALES = {"memory": 2**-30, "learning_rate": 1e6}  # of bytes, of what the axis says
_SMOOTHED = ("loss", "tokens_per_second", "reward")
_SERIES = {"train": "#f97316", "held_out": "#2563eb"}  # the page's own colour, as of curves that are alone


def build(page: "Page") -> None:
    with gr.Row():
        run = page.say(gr.Dropdown, {"label": "run"}, [], elem_id="run", scale=4, min_width=260)
        smoothing = page.say(gr.Slider, {"label": "smoothing"}, 0, 0.99, value=0.0, step=0.01, scale=1, min_width=180)
    state = gr.HTML(elem_id="state")
    _actions(page, run)
    curves = _curves(page)
    logged, result = gr.HTML(elem_id="logged"), gr.HTML(elem_id="result")
    with page.say(gr.Accordion, {"label": "log"}, open=False):
        log = gr.HTML(elem_id="log")

    def look(folder: str | None, smoothing: float, language: str) -> tuple[Any, ...]:
        return _looked(page, folder, smoothing, words(language))

    def follow(folder: str | None, smoothing: float, language: str) -> tuple[Any, ...]:
        choice, *seen = look(folder, smoothing, language)
        return {**choice, "value": folder}, *seen

    outputs = [run, state, *curves, logged, result, log]
    timer = gr.Timer(_EVERY)
    anew = [page.blocks.load, timer.tick, run.input, smoothing.change, page.language.change, page.tab.select]
    gr.on(anew, look, [run, smoothing, page.language], outputs, show_progress="hidden", trigger_mode="always_last")
    page.current.change(follow, [page.current, smoothing, page.language], outputs, show_progress="hidden")


def _actions(page: "Page", run: Any) -> None:
    """What can be done with the run that is chosen."""
    with gr.Row():
        stop = page.say(gr.Button, {"value": "stop"}, variant="stop", elem_id="stop")
        resume = page.say(gr.Button, {"value": "resume"}, elem_id="resume")
        again = page.say(gr.Button, {"value": "use_settings"}, elem_id="again")
    message = gr.Markdown(elem_id="run-message")

    def asked(folder: str | None, language: str) -> str:
        try:
            stopped = folder is not None and page.runs.known(folder) and page.runs.stop(folder)
        except UserError as error:
            return shown.as_printed(error)
        return words(language)("stopped" if stopped else "nothing_to_stop")

    def resumed(folder: str | None, language: str) -> str:
        say = words(language)
        if folder is None or not page.runs.known(folder):
            return say("no_runs")
        if page.runs.resume(folder):
            return listed.begun(page, folder, say)
        return say("nothing_to_resume", state=say(f"state.{page.runs.state(folder)}"))

    def settings(folder: str | None, overrides: Overrides, formed: int, language: str) -> tuple[Any, ...]:
        for each in page.runs.all():
            if each.folder == folder and each.verb == "train":
                return each.overrides, formed + 1, gr.update(selected="configure"), ""
        return overrides, formed, gr.update(), words(language)("no_training")

    stop.click(asked, [run, page.language], message)
    resume.click(resumed, [run, page.language], message)
    given, outputs = [run, page.overrides, page.formed, page.language], [page.overrides, page.formed, page.selected]
    again.click(settings, given, [*outputs, message], **ONE_BY_ONE)
    gr.on([run.input, page.current.change], lambda: "", None, message, show_progress="hidden")  # it was of another


def _curves(page: "Page") -> list[Any]:
    """A plot each of `_PLOTS`, two in a row."""
    plots, size = list[Any](), {"height": 240, "min_width": 300}
    for start in range(0, len(_PLOTS), 2):
        with gr.Row():
            plots += [
                page.say(gr.LinePlot, {"title": title}, x="step", y=shown_as, y_title=shown_as, **size)
                for _, shown_as, title in _PLOTS[start : start + 2]
            ]
    return plots


def _looked(page: "Page", asked: str | None, smoothing: float, say: Words) -> tuple[Any, ...]:
    """What is seen of a run; where it is not there, of one that goes on, or else of the newest."""
    runs, found = page.runs, page.runs.all()
    folder, folders = asked, [each.folder for each in found]
    if folder not in folders:
        folder = next((each.folder for each in found if each.state in GOING_ON), folders[0] if folders else None)
    choice = gr.update(choices=[(listed.name(each, say), each.folder) for each in found])
    if folder != asked:  # else it stays: a look that comes late must not take back what was chosen since
        choice["value"] = folder
    if folder is None:
        return choice, shown.waiting(say("no_runs")), *_drawn([], smoothing, say), "", "", ""
    inside = runs.inside(folder)
    lines, report, logged = runs.metrics(inside), runs.report(inside), runs.in_mlflow(inside)
    return (
        choice,
        _state(runs, folder, say),
        *_drawn(lines, smoothing, say),
        shown.in_mlflow([logged] if logged else [], say),
        shown.checks(report, say) if report else "",
        shown.log(runs.log(folder) or runs.log(inside)),
    )


def _state(runs: Runs, folder: str, say: Words) -> str:
    """What it does, how far it is, and how long it still takes by the speed of the steps so far; or what went wrong."""
    inside = runs.inside(folder)
    state, progress, lines = runs.state(folder), runs.progress(inside), runs.metrics(inside)
    if why := runs.refusal(folder):
        return shown.waiting(say(f"state.{state}")) + shown.log(why)
    said = [say(f"state.{state}")]
    if inside != folder:
        said.append(inside)
    if state == "failed" and (error := (runs.report(inside) or {}).get("error")):
        said.append(str(error).splitlines()[0])
    if state == "running" and progress:
        name, (done, total) = list(progress.items())[-1]
        said.append(f"{name} {done:,} / {total:,}")
        lines = [line for line in lines if line["step"] > runs.gone_on_from(inside)]
        if name == "train" and lines and 0 < done < total:
            began, now = lines[0], lines[-1]
            steps = now["step"] - began["step"]
            if steps > 0:
                pace = (now["time"] - began["time"]) / steps
                left = max(0.0, now["time"] + pace * (total - now["step"]) - time.time())
                said.append(say("left", time=duration(left, say.phrase)))
        return shown.progress(" · ".join(said), done / total if total else 0)
    return shown.waiting(" · ".join(said))


def _drawn(lines: list[dict[str, Any]], smoothing: float, say: Words) -> list[Any]:
    return [_plot(lines, name, shown_as, smoothing, say) for name, shown_as, _ in _PLOTS]


def _plot(lines: list[dict[str, Any]], name: str, shown_as: str, smoothing: float, say: Words) -> Any:
    """What was trained on, and where it was measured too, the held-out rows."""
    import pandas

    curves = {"train": _curve(lines, name, smoothing if name in _SMOOTHED else 0.0)}
    if held_out := _curve(lines, f"eval_{name}", 0.0):
        curves["held_out"] = held_out
    scale = _SCALES.get(name, 1.0)
    names, rows = {of: say(f"series.{of}") for of in _SERIES}, say("series")
    points = [(step, value * scale, names[of]) for of, curve in curves.items() for step, value in curve]
    # without points the columns would be of texts, and what is drawn later a text for each number
    frame = pandas.DataFrame(points, columns=["step", shown_as, rows]).astype({"step": float, shown_as: float})
    return gr.update(
        value=frame,
        color=rows if len(curves) > 1 else None,
        color_map={names[of]: colour for of, colour in _SERIES.items()},
        visible=bool(points) or name != "reward",
    )


def _curve(lines: list[dict[str, Any]], name: str, kept: float) -> list[tuple[int, float]]:
    """Steps and an exponential moving average that is not drawn to 0 at its start."""
    found, mean, weight = list[tuple[int, float]](), 0.0, 0.0
    for line in lines:
        if (value := line.get(name)) is None:
            continue
        mean = kept * mean + (1 - kept) * value
        weight = kept * weight + (1 - kept)
        found.append((line["step"], mean / weight))
    return found
