"""The comparison in a terminal: what does not fit its width is left out by importance, and named."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from factory.compare.columns import Column, decimals
from factory.compare.comparison import Comparison
from factory.compare.written import spreads
from factory.config.words import not_shown
from factory.evaluation.rows import Compared
from factory.plan import diff

_LABEL, _SHORTEST = 44, 14  # columns that a label takes at most, and at least where there is one
_GAP, _EDGES = 3, 2  # columns between two cells, and outside of all
_KEY_WIDTH, _VALUE_WIDTH = 20, 8  # columns that a differing key and a run's value of it (`bfloat16`) take at least
_KEYS = 12  # differing keys that are shown
_NOT_SHOWN = "compare.format=markdown shows all"


def shown(found: Comparison, width: int) -> Iterator[Any]:
    """What to print, one after the other."""
    yield from summary(found, width)
    yield from _intervals(found, width)
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
            *([escape(_by_word(found.labels[place], _LABEL))] if labelled else []),
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


def parted(word: str, room: int) -> list[str]:
    """A key or a list in lines that fit: one ends at a dot, a comma or the like; at an underscore where it must."""
    lines = [""]
    for part in _PARTS.findall(word):
        for piece in [part] if len(part) <= room - len(_INDENT) else _PIECES.findall(part):
            if lines[-1].strip() and len(lines[-1] + piece) > room:
                lines.append(_INDENT)
            lines[-1] += piece
    return lines


_PARTS, _PIECES = re.compile(r"[^.,=/]+[.,=/]*|[.,=/]+"), re.compile(r"[^_]+_*|_+")
_INDENT = "  "  # of a line that goes on with a word


def _by_word(text: str, room: int) -> str:
    """A word a line, or several where it is longer than the room."""
    return "\n".join(line for word in text.split() for line in parted(word, room))


def _longest(texts: Iterable[str]) -> int:
    return max((len(line) for text in texts for line in text.splitlines()), default=0)


def _intervals(found: Comparison, width: int) -> Iterator[Any]:
    """A table a verdict: the other runs less the leading one."""
    for column, verdict in found.judged():
        title = f"{column.title}, less that of {escape(found.names[verdict.leading])}"
        made = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        rows = {place: _interval(each) for place, each in verdict.others.items()}
        taken = sum(_longest(cells) + _GAP for cells in zip(_OF_AN_INTERVAL, *rows.values(), strict=True))
        made.add_column("run", overflow="fold")
        for name in _OF_AN_INTERVAL:
            made.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
        for place, cells in rows.items():
            made.add_row(escape(_by_word(found.names[place], width - taken - _EDGES)), *cells)
        yield made


_OF_AN_INTERVAL = ("difference", "95 % interval", "rows", "")


def _interval(each: Compared) -> tuple[str, ...]:
    value = each.difference
    unsure = "too few rows" if each.few else "" if value.sure else "holds 0"
    return (
        decimals(value.value, "+"),
        f"{decimals(value.low, '+')} to {decimals(value.high, '+')}",
        f"{each.rows:,}",
        unsure,
    )


def _plans(found: Comparison, width: int) -> Iterator[Any]:
    rows = spreads(found)
    if not rows:
        return
    if _KEY_WIDTH + len(found.planned) * (_VALUE_WIDTH + _GAP) + _EDGES > width:
        yield Text(f"The plans differ in {len(rows)} keys, for which there is no room here; {_NOT_SHOWN}", style="dim")
        return
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title="differences of the plans", title_justify="left")
    of_keys, of_values = _rooms(found, rows[:_KEYS], width)
    made.add_column("key", overflow="fold", min_width=of_keys)
    for place in found.planned:
        made.add_column(escape(_by_word(found.runs[place].name, of_values)), overflow="fold")
    for each in rows[:_KEYS]:
        values = ("[dim]-[/dim]" if text == _NONE else escape(_by_word(text, of_values)) for text in _values(each))
        made.add_row(_by_word(each.key, of_keys), *values)
    yield made
    if len(rows) > _KEYS:
        yield Text(f"and {len(rows) - _KEYS} more keys; {_NOT_SHOWN}", style="dim")


def _rooms(found: Comparison, rows: Sequence[diff.Spread], width: int) -> tuple[int, int]:
    """What a key and a value of it may take: a key all that it needs, if the values can do with the rest."""
    longest = _longest(each.key for each in rows)
    names = (found.runs[place].name for place in found.planned)
    needed = [_longest(texts) for texts in zip(names, *map(_values, rows), strict=True)]

    def taken(most: int) -> int:
        return sum(min(most, each) + _GAP for each in needed)

    fitting = (most for most in range(max(needed), _VALUE_WIDTH, -1) if longest + taken(most) + _EDGES <= width)
    of_values = next(fitting, _VALUE_WIDTH)
    return max(_KEY_WIDTH, min(longest, width - taken(of_values) - _EDGES)), of_values


_NONE = "-"


def _values(each: diff.Spread) -> list[str]:
    return [_NONE if value == diff.ABSENT else diff.shown(value) for value in each.values]
