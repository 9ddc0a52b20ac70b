"""Train: the runs there are, whoever started them; curves, progress and log of one, while it goes on and afterwards."""

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import gradio as gr

from factory.board import shown
from factory.board.line import Overrides
from factory.board.runs import Runs, Shown
from factory.board.said import Words, words
from factory.words import duration

if TYPE_CHECKING:
    from factory.board.page import Page

_EVERY = 2.0  # seconds between two looks
_GOING_ON = ("queued", "starting", "running")


def build(page: "Page") -> None:
    with gr.Row():
        run = page.say(gr.Dropdown([], label=page.text("run"), elem_id="run", scale=4), label="run")
        smoothing = page.say(
            gr.Slider(0, 0.99, value=0.0, step=0.01, label=page.text("smoothing"), scale=1, min_width=180),
            label="smoothing",
        )
    state = gr.HTML(elem_id="state")
    with gr.Row():
        stop = page.say(gr.Button(page.text("stop"), variant="stop", elem_id="stop"), value="stop")
        resume = page.say(gr.Button(page.text("resume"), elem_id="resume"), value="resume")
        again = page.say(gr.Button(page.text("use_settings"), elem_id="again"), value="use_settings")
    message = gr.Markdown()
    with gr.Row():
        loss = page.say(gr.LinePlot(x="step", y="loss", title=page.text("loss"), height=260), title="loss")
        rate = page.say(
            gr.LinePlot(x="step", y="learning rate", title=page.text("learning_rate"), height=260),
            title="learning_rate",
        )
    with gr.Row():
        speed = page.say(
            gr.LinePlot(x="step", y="tokens/s", title=page.text("tokens_per_second"), height=220),
            title="tokens_per_second",
        )
        memory = page.say(
            gr.LinePlot(x="step", y="GiB", title=page.text("memory_used"), height=220), title="memory_used"
        )
    result = gr.HTML(elem_id="result")
    with gr.Accordion(page.text("log"), open=False) as log_of:
        log = gr.HTML(elem_id="log")
    page.say(log_of, label="log")
    timer = gr.Timer(_EVERY)

    def look(folder: str | None, smoothing: float, language: str) -> tuple[Any, ...]:
        say, runs = words(language), page.runs
        found = runs.all()
        names = [(_name(each, say), each.folder) for each in found]
        folders = [each.folder for each in found]
        if folder not in folders:
            folder = next((each.folder for each in found if each.state in _GOING_ON), folders[0] if folders else None)
        choice = gr.update(choices=names, value=folder)
        if folder is None:
            return choice, shown.waiting(say("no_runs")), None, None, None, None, "", ""
        lines = runs.metrics(folder)
        report = runs.report(folder)
        return (
            choice,
            _state(runs, folder, say),
            _curve(lines, "loss", "loss", smoothing),
            _curve(lines, "learning_rate", "learning rate", 0),
            _curve(lines, "tokens_per_second", "tokens/s", smoothing),
            _curve(lines, "memory", "GiB", 0, 2**-30),
            shown.checks(report, say) if report else "",
            shown.log(runs.log(folder)),
        )

    outputs = [run, state, loss, rate, speed, memory, result, log]
    given = [run, smoothing, page.language]
    anew = [page.blocks.load, timer.tick, run.input, smoothing.change, page.language.change, page.tab.select]
    gr.on(anew, look, given, outputs, show_progress="hidden", trigger_mode="always_last")

    started = [page.current, smoothing, page.language]
    page.current.change(look, started, outputs, show_progress="hidden")

    def asked(folder: str | None, language: str) -> str:
        stopped = folder is not None and page.runs.known(folder) and page.runs.stop(folder)
        return words(language)("stopped" if stopped else "nothing_to_stop")

    stop.click(asked, [run, page.language], message)
    resume.click(lambda folder: page.runs.resume(folder) if page.runs.known(folder) else None, run)

    def settings(folder: str | None, overrides: Overrides, formed: int) -> tuple[Overrides, int, Any]:
        for each in page.runs.all():
            if each.folder == folder:
                return each.overrides, formed + 1, gr.update(selected="configure")
        return overrides, formed, gr.update()

    again.click(settings, [run, page.overrides, page.formed], [page.overrides, page.formed, page.selected])


def _name(each: Shown, say: Words) -> str:
    when = datetime.fromtimestamp(each.started)
    return f"{say(f'state.{each.state}')} · {when:%m-%d %H:%M} · {' '.join(each.overrides) or '-'} · {each.folder}"


def _state(runs: Runs, folder: str, say: Words) -> str:
    """What it does, how far it is, and how long it still takes by the speed of the steps so far."""
    state, progress = runs.state(folder), runs.progress(folder)
    said = [say(f"state.{state}")]
    lines = runs.metrics(folder)
    if state == "running" and progress:
        name, (done, total) = list(progress.items())[-1]
        said.append(f"{name} {done:,} / {total:,}")
        if name == "train" and lines and 0 < done < total:
            began, now = lines[0], lines[-1]
            steps = now["step"] - began["step"]
            if steps > 0:
                pace = (now["time"] - began["time"]) / steps
                left = max(0.0, now["time"] + pace * (total - now["step"]) - time.time())
                said.append(say("left", time=duration(left)))
        return shown.progress(" · ".join(said), done / total if total else 0)
    return shown.waiting(" · ".join(said))


def _curve(lines: list[dict[str, Any]], name: str, shown_as: str, smoothing: float, scale: float = 1.0) -> Any:
    """An exponential moving average that is not drawn to 0 at its start."""
    import pandas

    steps, values, mean, weight = list[int](), list[float](), 0.0, 0.0
    for line in lines:
        if (value := line.get(name)) is None:
            continue
        mean = smoothing * mean + (1 - smoothing) * value * scale
        weight = smoothing * weight + (1 - smoothing)
        steps.append(line["step"])
        values.append(mean / weight)
    return pandas.DataFrame({"step": steps, shown_as: values})


def named(runs: Runs, say: Words, states: tuple[str, ...]) -> list[tuple[str, str]]:
    """The runs in these states, as a list shows them."""
    return [(_name(each, say), each.folder) for each in runs.all() if each.state in states]
