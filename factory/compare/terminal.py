"""The comparison in a terminal: what does not fit its width is left out by importance, and named."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from factory import diff
from factory.compare.columns import Column
from factory.compare.comparison import Comparison
from factory.compare.written import spreads
from factory.words import not_shown

_LABEL, _SHORTEST = 44, 14  # columns that a label takes at most, and at least where there is one
_GAP = 3  # columns between two cells
_KEY_WIDTH, _VALUE_WIDTH = 20, 6  # columns that a differing key and a run's value of it take at least
_KEYS = 12  # differing keys that are shown
_NOT_SHOWN = "compare.format=markdown shows all"


def shown(found: Comparison, width: int) -> Iterator[Any]:
    """What to print, one after the other."""
    yield from summary(found, width)
    yield from _intervals(found)
    yield from _plans(found, width)


def summary(found: Comparison, width: int) -> Iterator[Any]:
    """The table, with what its reader must know."""
    columns, left_out = fitting(found, width)
    yield table(found, columns)
    if left_out:
        yield Text(not_shown(column.title for column in left_out), style="dim")
    for note in found.notes:
        yield Text(f"- {note}")


def table(found: Comparison, columns: Sequence[Column]) -> Table:
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    made.add_column("run", overflow="fold")
    labelled = any(found.labels)
    if labelled:
        made.add_column("what differs", overflow="fold", max_width=_LABEL)
    for column in columns:
        made.add_column(column.title, justify="right", no_wrap=False)
    if not found.all_finished:
        made.add_column("status")
    for place, run in enumerate(found.runs):
        made.add_row(
            escape(run.name),
            *([escape(found.labels[place].replace(" ", "\n"))] if labelled else []),
            *(_cell(found, column, place) for column in columns),
            *([] if found.all_finished else [_STYLED.get(run.status, "{}").format(run.status)]),
        )
    return made


_STYLED = {
    "finished": "[green]{}[/green]",
    "failed": "[red]{}[/red]",
    "red check": "[red]{}[/red]",
    "refused": "[yellow]{}[/yellow]",
}


def _cell(found: Comparison, column: Column, place: int) -> str:
    text = column.text(found.runs[place])
    if found.best(column, place):
        return f"[bold green]{text}[/bold green]*"
    starred = any(verdict.best is not None for verdict in found.verdicts.get(column.key, ()))
    return f"{text} " if starred else text  # digits stand under digits


def fitting(found: Comparison, width: int) -> tuple[list[Column], list[Column]]:
    """The columns that there is room for, and those that there is not."""
    kept, left_out = list(found.columns), list[Column]()
    while kept and _width(found, kept) > width:
        least = min(kept, key=lambda column: column.keep)
        kept.remove(least)
        left_out.insert(0, least)
    return kept, left_out


def _width(found: Comparison, columns: Sequence[Column]) -> int:
    name = max(len("run"), *(len(run.name) for run in found.runs))
    label = max((len(word) for label in found.labels for word in label.split()), default=0)
    status = 0 if found.all_finished else max(len(run.status) for run in found.runs) + _GAP
    cells = (
        max(*map(len, column.title.split()), *(len(column.text(run)) + 1 for run in found.runs)) for column in columns
    )
    return (
        name + (min(max(label, _SHORTEST), _LABEL) + _GAP if label else 0) + status + sum(each + _GAP for each in cells)
    )


def _intervals(found: Comparison) -> Iterator[Any]:
    """A table a verdict: the other runs less the leading one."""
    for column, verdict in found.judged():
        title = f"{column.title}, less that of {escape(found.names[verdict.leading])}"
        made = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        made.add_column("run", overflow="fold")
        for name in ("difference", "95 % interval", "rows"):
            made.add_column(name, justify="right", no_wrap=True)
        made.add_column("")
        for place, each in verdict.others.items():
            value = each.difference
            interval = f"{value.low:+.3f} to {value.high:+.3f}"
            unsure = "too few rows" if each.few else "" if value.sure else "holds 0"
            made.add_row(escape(found.names[place]), f"{value.value:+.3f}", interval, f"{each.rows:,}", unsure)
        yield made


def _plans(found: Comparison, width: int) -> Iterator[Any]:
    rows = spreads(found)
    if not rows:
        return
    if _KEY_WIDTH + len(found.planned) * _VALUE_WIDTH > width:
        yield Text(f"The plans differ in {len(rows)} keys, for which there is no room here; {_NOT_SHOWN}", style="dim")
        return
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title="differences of the plans", title_justify="left")
    made.add_column("key", overflow="fold")
    for place in found.planned:
        made.add_column(escape(found.runs[place].name), overflow="fold")
    for each in rows[:_KEYS]:
        made.add_row(each.key, *(_value(value) for value in each.values))
    yield made
    if len(rows) > _KEYS:
        yield Text(f"and {len(rows) - _KEYS} more keys; {_NOT_SHOWN}", style="dim")


def _value(value: Any) -> str:
    return "[dim]-[/dim]" if value == diff.ABSENT else escape(diff.shown(value))
