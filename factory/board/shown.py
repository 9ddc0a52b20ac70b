"""The page's HTML. Whatever comes from data, logs or people is escaped here."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from factory.board.planned import Planned
from factory.board.said import Words
from factory.config.refusal import Refusal
from factory.config.words import between, duration, size
from factory.plan.plan import MEMORY_PARTS, Estimate, Memory, Range
from factory.tracking.spec import mlflow_page, mlflow_ui
from factory.tracking.to_mlflow import measured

CSS = """
body:not(.dark) { --block-info-text-color: #52525b; --body-text-color-subdued: #52525b;
  --input-placeholder-color: #6b7280; }
.gradio-container { width: 100% !important; max-width: 1500px !important; margin: auto; }
.gradio-container main, .gradio-container .main { width: 100% !important; }
.secondary-wrap:only-child input { text-overflow: ellipsis; margin-right: 26px; }
.f-header { align-items: center !important; } .f-line { align-items: flex-end !important; }
#title { min-width: 140px; }
.f-form { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr));
  gap: 10px !important; }
.f-configure { display: grid !important; grid-template-columns: minmax(0, 1fr); }
.f-configure > * { min-width: 0 !important; }
@media (min-width: 900px) {
  .f-configure { grid-template: "options side" auto "keys side" 1fr / minmax(0, 3fr) minmax(0, 2fr); }
  .f-options { grid-area: options; } .f-keys { grid-area: keys; }
  .f-side { grid-area: side; position: sticky; top: 8px; align-self: start; }
}
.f-bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.f-bar span { display: block; height: 100%; min-width: 1px; }
.f-parts { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; margin: 6px 0 2px; }
.f-parts i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 4px; }
.f-plan { font-size: 14px; }
.f-plan dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 8px 0; }
.f-plan dt { color: var(--body-text-color-subdued); }
.f-plan dd { margin: 0; overflow-wrap: anywhere; }
.f-over { color: #b91c1c; font-weight: 600; } .dark .f-over { color: #fca5a5; }
.f-problem { border-left: 4px solid #dc2626; padding: 4px 10px; margin: 2px 0; font-size: 13px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); }
.f-problem code { font-size: 12px; }
.f-unseen { display: none !important; }
.f-give { display: block; width: 100%; margin: 4px 0; padding: 5px 10px; font-size: 13px; font-weight: 600;
  cursor: pointer; border-radius: 6px; color: var(--button-secondary-text-color); overflow-wrap: anywhere;
  background: var(--button-secondary-background-fill); border: 1px solid var(--button-secondary-border-color); }
.f-give:hover { background: var(--button-secondary-background-fill-hover); }
.f-warning { border-left: 4px solid #d97706; padding: 4px 10px; margin: 4px 0; font-size: 13px; overflow-wrap: anywhere;
  background: var(--background-fill-secondary); }
.f-log { font-family: var(--font-mono); font-size: 12px; white-space: pre-wrap; overflow: auto; max-height: 380px;
  border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 8px;
  display: flex; flex-direction: column-reverse; /* its end is what one looks for */ }
.f-table { overflow: auto; max-height: 70vh; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.f-table table { border-collapse: collapse; width: 100%; font-size: 13px; }
.f-table table, .f-table tr { border: none !important; }
.f-table caption { text-align: left; font-weight: 600; padding: 6px 8px; }
.f-table th { position: sticky; top: 0; background: var(--background-fill-secondary); text-align: left; }
.f-table th, .f-table td { padding: 5px 8px; vertical-align: top; border-bottom: 1px solid var(--border-color-primary);
  border-left: none !important; border-right: none !important; overflow-wrap: break-word; max-width: 420px; }
.f-page { width: 100%; height: 78vh; border: 1px solid var(--border-color-primary); border-radius: 6px;
  color-scheme: light; }
.dark .f-page { color-scheme: dark; }
.f-mlflow { margin: 4px 0; font-size: 14px; overflow-wrap: anywhere; }
.f-mlflow a { text-decoration: underline; margin-right: 12px; }
.f-mlflow pre { white-space: pre-wrap; margin: 4px 0; padding: 6px 8px; border-radius: 6px;
  background: var(--background-fill-secondary); }
.f-good { color: #15803d; } .dark .f-good { color: #86efac; }
.f-bad { color: #b91c1c; } .dark .f-bad { color: #fca5a5; }
"""
_COLOURS = ("#2563eb", "#0891b2", "#7c3aed", "#16a34a", "#ca8a04", "#ea580c", "#94a3b8", "#64748b")


def plan(planned: Planned, say: Words) -> str:
    """The estimate beside the machine, or how many problems there are."""
    if planned.plan is None:
        count = say("problems", count=len(planned.problems))
        return f'<div class="f-plan" role="status"><p class="f-over">{escape(count)}</p></div>'
    estimate, warnings = planned.plan.estimate, planned.plan.warnings
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _rows(estimate, say))
    told = "".join(f'<div class="f-warning">{escape(str(warning))}</div>' for warning in warnings)
    return f'<div class="f-plan" role="status">{memory(estimate.memory, say)}<dl>{rows}</dl>{told}</div>'


def memory(found: Memory, say: Words) -> str:
    """A bar as wide as what is there, or as what is needed where that is more."""
    whole = max(found.total, found.capacity or 0)
    every = ((name, getattr(found, name), colour) for name, colour in zip(MEMORY_PARTS, _COLOURS, strict=True))
    parts = [(escape(say(f"memory.{name}")), count, colour) for name, count, colour in every if count]
    scale = found.total / (sum(count for _, count, _ in parts) or 1)  # they are not all there at one moment
    bar = "".join(
        f'<span style="width:{100 * count * scale / whole:.2f}%;background:{colour}" title="{name}"></span>'
        for name, count, colour in parts
    )
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{name} {size(count)}</span>' for name, count, colour in parts
    )
    if found.capacity is None:
        used, verdict, style = size(found.total), "no_capacity", ""
    else:
        used = say("of_capacity", used=size(found.total), capacity=size(found.capacity))
        verdict, style = ("fits", "f-good") if found.fits else ("does_not_fit", "f-over")
    head = f'{escape(say("memory"))}: {escape(used)}, <span class="{style}">{escape(say(verdict))}</span>'
    return (
        f'<div>{head}</div><div class="f-bar" role="img" aria-label="{escape(used)}">{bar}</div>'
        f'<div class="f-parts">{legend}</div>'
    )


def _rows(estimate: Estimate, say: Words) -> Iterable[tuple[str, str]]:
    counted = estimate.parameters
    share = f"{100 * counted.trainable / counted.total:.2f} %"
    trained = say("parameters_of", trained=f"{counted.trainable:,}", total=f"{counted.total:,}", share=share)
    yield say("parameters"), trained
    yield say("steps"), _between(estimate.steps, say)
    if estimate.tokens is not None:
        yield say("tokens"), _between(estimate.tokens, say)
    if estimate.seconds is None:
        yield say("time"), say("unknown_time")
    else:
        low, high = (duration(seconds, say.phrase) for seconds in (estimate.seconds.low, estimate.seconds.high))
        yield say("time"), between(low, high, say.phrase)


def _between(found: Range, say: Words) -> str:
    if found.low == found.high:
        return f"{found.low:,}"
    return f"{between(f'{found.low:,}', f'{found.high:,}', say.phrase)} ({say('after_pack')})"


# a line is left in a box of the page, which hears of it: what is drawn anew may be gone before its own event arrives
_GIVE = (
    "const box = document.querySelector('#given textarea, #given input');"
    "box.value = this.dataset.line + '\\n' + Date.now();"
    "box.dispatchEvent(new Event('input', {bubbles: true}))"
)


def giving(text: str, line: str) -> str:
    """A button that gives the page this line: a command line, or a question of its own."""
    return f'<button type="button" class="f-give" data-line="{escape(line)}" onclick="{_GIVE}">{escape(text)}</button>'


def problem(found: Refusal, say: Words) -> str:
    return (
        f'<div class="f-problem" role="alert"><b>{escape(found.setting)}</b>: {escape(found.wrong)}<br>'
        f"{escape(say('because'))} {escape(found.because)}<br>"
        f"{escape(say('fix'))}: {escape(found.fix)} <code>[{escape(found.rule)}]</code></div>"
    )


def problems(found: Iterable[Refusal], say: Words) -> str:
    return "".join(problem(each, say) for each in found)


def as_printed(error: Exception) -> str:
    """Markdown of what a terminal would show."""
    return f"```\n{error}\n```"


def log(text: str) -> str:
    return f'<div class="f-log" tabindex="0"><div>{escape(text)}</div></div>'


def checks(report: dict[str, Any], say: Words) -> str:
    """What the run proved of itself."""
    rows = "".join(
        f'<li><span class="f-{"good" if found["passed"] else "bad"}">{"✓" if found["passed"] else "✗"}</span> '
        f"<b>{escape(name)}</b>: {escape(str(found['detail']))}</li>"
        for name, found in report.get("checks", {}).items()
    )
    return f"<div><b>{escape(say('checks'))}</b><ul>{rows}</ul></div>" if rows else ""


def figures(report: dict[str, Any], say: Words) -> str:
    """What a run measured."""
    found = {name: value for name, value in report.get("evaluate", {}).items() if isinstance(value, int | float)}
    found |= {name: value for name, value in measured(report).items() if name.startswith("evaluate/")}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{value:.5g}</dd>" for name, value in found.items())
    return f'<div class="f-plan"><b>{escape(say("result"))}</b><dl>{rows}</dl></div>' if rows else ""


def answers(rows: list[dict[str, Any]], most: int, say: Words) -> str:
    """A table of what was asked and answered, the scores beside it."""
    if not rows:
        return ""
    flat = [{**row, **row.get("scores", {})} for row in rows[:most]]
    left_out = ("scores", "sums")  # what figures are made of
    names = [name for name in dict.fromkeys(name for row in flat for name in row) if name not in left_out]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(row.get(name)))}</td>' for name in names)}</tr>" for row in flat)
    label = escape(say("answers_first", shown=most, count=len(rows)) if len(rows) > most else say("answers"))
    return (
        f'<div class="f-table" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_cell(each)}" for name, each in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def inner_page(html: str, title: str) -> str:
    """A page of its own, which can reach nothing of this one: its own script runs, without this page's origin."""
    return f'<iframe class="f-page" srcdoc="{escape(html)}" sandbox="allow-scripts" title="{escape(title)}"></iframe>'


def in_mlflow(found: Iterable[tuple[str, str | None]], say: Words) -> str:
    """Where runs are shown that were logged to (store, run's id): links to servers; of files the command to give."""
    said = dict[str, None]()
    for uri, run_id in found:
        address = mlflow_page(uri, run_id or "")
        if address is None:
            where = escape(say("mlflow_command", folder=str(Path.cwd())))
            said[f"{where}<pre><code>{escape(mlflow_ui(uri))}</code></pre>"] = None
        else:
            name = escape(say("mlflow_open", run=(run_id or "")[:8]))
            said[f'<a href="{escape(address)}" target="_blank" rel="noopener">{name}</a>'] = None
    return f'<div class="f-mlflow">{" ".join(said)}</div>' if said else ""


def waiting(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'


def progress(text: str, share: float) -> str:
    return (
        f'<p role="status">{escape(text)}</p><div class="f-bar"><span style="width:{100 * share:.1f}%;'
        'background:var(--color-accent)"></span></div>'
    )
