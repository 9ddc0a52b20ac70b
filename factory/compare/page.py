"""The comparison as one HTML file that needs nothing else: no network, no script."""

from html import escape
from pathlib import Path
from string import Template

from factory.compare import plots
from factory.compare.columns import PEAK, PERPLEXITY, decimals
from factory.compare.comparison import Comparison
from factory.compare.plots import Interval, Point, Series
from factory.compare.runs import Run
from factory.compare.written import spreads
from factory.plan import diff

_ROOM = Path(__file__).parent
_COLOURS = 8  # --c0 … in page.css
_DASHES = ("", "7 4", "2 4", "10 3 2 3")  # of the runs after those
_GIB = 2**30
_OPEN = 24  # keys that are shown without asking
_GROUPS = ("model", "data", "stage", "method", "precision", "hardware")  # in the order of a person's questions


def page(found: Comparison) -> str:
    title = f"Comparison of {len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    return Template((_ROOM / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(_ROOM / "page.css").read_text(encoding="utf-8"),
        colours="\n".join(_colour(place) for place in range(len(found.runs))),
        shared="".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in _shared(found)),
        table=_table(found),
        notes=_notes(found),
        curves=_section("Curves", _legend(found), _curves(found)),
        intervals=_intervals(found),
        plans=_plans(found),
        places="".join(_place(found, place) for place in range(len(found.runs))),
    )


def _colour(place: int) -> str:
    dash = _DASHES[place // _COLOURS % len(_DASHES)]
    return f".s{place} {{ --c: var(--c{place % _COLOURS});{f' --d: {dash};' if dash else ''} }}"


def _shared(found: Comparison) -> list[tuple[str, str]]:
    """The options that all runs have in common."""
    options = [run.options for run in found.runs if run.options]
    alike = [(name, {each.get(name) for each in options}) for name in _GROUPS]
    return [(name, value) for name, values in alike if len(values) == 1 and (value := values.pop()) is not None]


def _table(found: Comparison) -> str:
    heads = "".join(f"<th class='number' scope='col'>{escape(column.title)}</th>" for column in found.columns)
    status = "" if found.all_finished else "<th scope='col'>status</th>"
    rows = "".join(_row(found, place) for place in range(len(found.runs)))
    head = f"<thead><tr><th scope='col'>run</th>{heads}{status}</tr></thead>"
    return f"<div class='wide'><table class='results'>{head}<tbody>{rows}</tbody></table></div>"


def _row(found: Comparison, place: int) -> str:
    run = found.runs[place]
    cells = list[str]()
    for column in found.columns:
        best = found.best(column, place)
        text = escape(column.text(run))
        cells.append(
            f"<td class='number{' best' if best else ''}' data-title='{escape(column.title)}'>"
            f"{f'<b>{text}</b>' if best else text}</td>"
        )
    status = "" if found.all_finished else _status(run)
    return f"<tr><th class='run' scope='row'>{_named(found, place)}</th>{''.join(cells)}{status}</tr>"


_BAD = ("failed", "red check", "missing", "cut short")


def _status(run: Run) -> str:
    kind = " class='bad'" if run.status in _BAD else ""
    return f"<td{kind} data-title='status'>{escape(run.status)}</td>"


def _named(found: Comparison, place: int) -> str:
    """What was asked of the run alone, with its name under it."""
    run, label = found.runs[place], found.labels[place]
    under = f"<small>{escape(run.name)}</small>" if label else ""
    return f"<i class='key s{place}'></i>{escape(label or run.name)}{under}"


def _notes(found: Comparison) -> str:
    return (
        f"<ul class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in found.notes)}</ul>" if found.notes else ""
    )


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}\n</section>" if parts[-1] else ""


def _legend(found: Comparison) -> str:
    drawn = (place for place, run in enumerate(found.runs) if run.lines or run.report.get("evaluate"))
    lines = "".join(f"<li><i class='key s{place}'></i>{escape(found.names[place])}</li>" for place in drawn)
    return f"<ul class='legend'>{lines}</ul>"


def _curves(found: Comparison) -> str:
    held_out = any("eval_loss" in line for run in found.runs for line in run.lines)
    caption = "Circles: the held-out rows." if held_out else ""
    memory = [Series(place, found.names[place], _memory(run)) for place, run in enumerate(found.runs)]
    rates = plots.lines(_series(found, "step", "learning_rate"), "step", "learning rate", zero=True)
    figures = [
        *(
            (f"Loss by {each}", plots.lines(_series(found, across, "loss", "eval_loss"), across, "loss"), caption)
            for each, across in (("step", "step"), ("token", "tokens"), ("second", "seconds"))
        ),
        ("Learning rate", rates, ""),
        ("Memory against perplexity", plots.scatter(memory, "peak memory, GiB", "perplexity"), ""),
    ]
    drawn = "".join(
        f"<figure><h3>{title}</h3>{svg}{f'<figcaption>{note}</figcaption>' if note else ''}</figure>"
        for title, svg, note in figures
        if svg
    )
    return f"<div class='plots'>{drawn}</div>" if drawn else ""


def _series(found: Comparison, across: str, up: str, mark: str | None = None) -> list[Series]:
    return [
        Series(place, found.names[place], _points(run, across, up), _points(run, across, mark) if mark else ())
        for place, run in enumerate(found.runs)
    ]


def _points(run: Run, across: str, up: str) -> list[Point]:
    """Where a value was not finite there is no point."""
    pairs = ((line.get(across), line.get(up)) for line in run.lines)
    return [(float(x), float(y)) for x, y in pairs if x is not None and y is not None]


def _memory(run: Run) -> list[Point]:
    peak, perplexity = PEAK.value(run), PERPLEXITY.value(run)
    return [] if peak is None or perplexity is None or not plots.fits(perplexity) else [(peak / _GIB, perplexity)]


def _intervals(found: Comparison) -> str:
    figures = list[str]()
    for column, verdict in found.judged():
        drawn = [
            Interval(
                place,
                found.names[place],
                each.difference.low,
                each.difference.value,
                each.difference.high,
                f"{decimals(each.difference.value, '+')} "
                f"[{decimals(each.difference.low, '+')}, {decimals(each.difference.high, '+')}]",
            )
            for place, each in verdict.others.items()
        ]
        endless = [each for each in drawn if not all(map(plots.fits, (each.low, each.value, each.high)))]
        drawn = [each for each in drawn if each not in endless]
        rows = min(each.rows for each in verdict.others.values())
        less = f"{column.title}, less that of {found.names[verdict.leading]}"
        svg = plots.intervals(drawn, less) if drawn else ""
        caption = f"{rows:,} rows, 95 %; {'lower' if column.better == 'low' else 'higher'} is better"
        caption += "".join(f"; not drawn: {escape(each.name)}, {escape(each.told)}" for each in endless)
        figures.append(f"<figure><h3>{escape(column.title)}</h3>{svg}<figcaption>{caption}</figcaption></figure>")
    return _section("How sure the differences are", f"<div class='plots'>{''.join(figures)}</div>" if figures else "")


def _plans(found: Comparison) -> str:
    rows = spreads(found)
    if found.spreads is None:
        return ""
    if not rows:
        return _section("Differences of the plans", "<p>Nothing that decides the result differs.</p>")
    heads = "".join(f"<th scope='col'>{_named(found, place)}</th>" for place in found.planned)
    lines = "".join(_spread(each) for each in rows)
    body = (
        f"<div class='wide'><table class='spread'><thead><tr><th scope='col'>key</th>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )
    count = f"{len(rows)} key{'s' * (len(rows) != 1)}"
    opened = " open" if len(rows) <= _OPEN else ""
    return _section(
        "Differences of the plans",
        f"<details{opened}><summary>{count} that can change the result</summary>{body}</details>",
    )


def _spread(each: diff.Spread) -> str:
    cells = "".join(
        "<td class='soft'>-</td>" if value == diff.ABSENT else f"<td>{escape(diff.shown(value))}</td>"
        for value in each.values
    )
    return f"<tr><th scope='row'>{escape(each.key)}</th>{cells}</tr>"


def _place(found: Comparison, place: int) -> str:
    run = found.runs[place]
    digest = run.report.get("plan_digest")
    about = f" · plan {escape(str(digest))}" if digest else ""
    return f"<li>{_named(found, place)} <code>{escape(run.where)}</code>{about}</li>"
