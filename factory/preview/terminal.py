"""A preview for a terminal, a pipe or a file: colours where there are any, marks around what is trained where not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from factory.preview.samples import Lengths, Preview, Sample, Side, Token, stretches
from factory.preview.visible import encodable, escaped, in_line, visible
from factory.preview.words import bar_length, counted, described, dropped, media, origins, sizes, span
from factory.preview.words import origin as named

_SIDE_BY_SIDE = 100  # columns from which a pair's answers stand beside each other
_SHOWN = 4096  # tokens of one sequence; the page and the JSON have them all
_BAR = 40  # columns of the longest bar
_BESIDE_BAR = 26  # of what stands beside it: the panel, the label, the count
# trained or not, special or not
_STYLES = {
    (True, False): "bold green",
    (True, True): "bold reverse green",
    (False, False): "dim",
    (False, True): "cyan",
}
_BORDER = "yellow"


@dataclass(frozen=True, slots=True)
class Signs:
    """What is drawn with; the second set is ASCII."""

    opening: str
    closing: str
    bar: str
    rule: str
    times: str
    between: str
    wanted: str
    unwanted: str


_SIGNS = Signs("⟦", "⟧", "█", "─", "\N{MULTIPLICATION SIGN}", " · ", "👍 desirable", "👎 undesirable")
_ASCII = Signs("[[", "]]", "#", "-", "x", " | ", "desirable", "undesirable")


def _unlike_marks(text: str, following: str) -> str:
    """ASCII in which no `[[` or `]]` stands, nor comes to stand where a mark follows."""
    return re.sub(r"([\[\]])(?=\1)", lambda found: f"\\x{ord(found[0]):02x}", text + following[0])[:-1]


class Terminal:
    """Prints to one console. `marked`: what is trained stands between marks, since no colour tells it."""

    def __init__(self, console: Console):
        self._console = console
        self.marked = console.no_color or console.color_system is None
        self._encoding = console.encoding
        self._signs = _ASCII if console.options.ascii_only else _SIGNS

    def print(self, preview: Preview) -> None:
        self._print(self._summary(preview))
        for number, sample in enumerate(preview.samples, start=1):
            self._console.print()
            self._sample(number, sample)
        if preview.samples:
            self._console.print()
            self._print(self._legend())

    def _print(self, what: Any) -> None:
        # in a pipe a line is as long as it is: nobody wants a break in the middle of a token
        self._console.print(what, soft_wrap=not self._console.is_terminal)

    def _text(self, text: str, style: str = "") -> Text:
        return Text(encodable(text, self._encoding), style=style)

    # the summary

    def _summary(self, preview: Preview) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in self._lines(preview):
            table.add_row(self._text(name), text)
        return Panel(table, title="preview", title_align="left", expand=False)

    def _lines(self, preview: Preview) -> Iterator[tuple[str, Text]]:
        for name, value in preview.settings.items():
            yield name, self._text(in_line(value))
        for name, value in counted(preview):
            yield name, self._text(value)
        for each in preview.dropped:
            yield "dropped", self._text(dropped(each), "yellow")
        if preview.lengths is not None:
            yield "lengths", self._histogram(preview.lengths)
        for note in preview.notes:
            yield "note", self._text(in_line(note), "dim")

    def _histogram(self, lengths: Lengths) -> Text:
        """A bar a bin; max_length as a line where it belongs."""
        lines = [self._text(described(lengths))]
        most = max(each.rows for each in lengths.bins)
        width = max(len(span(each)) for each in lengths.bins)
        longest = max(4, min(_BAR, self._console.width - width - _BESIDE_BAR))
        for each in lengths.lines:
            if each is None:
                lines.append(self._ruled(f"max_length {lengths.max_length:,}"))
                continue
            bar = self._signs.bar * bar_length(each.rows, most, longest)
            line = self._text(f"{span(each):>{width}}  ")
            lines.append(line.append_text(self._text(bar, "green")).append(f"{' ' if bar else ''}{each.rows:,}"))
        return Text("\n").join(lines)

    def _ruled(self, text: str) -> Text:
        return self._text(f"{self._signs.rule * 3} {text} {self._signs.rule * 3}", _BORDER)

    # the samples

    def _sample(self, number: int, sample: Sample) -> None:
        self._print(self._title(number, sample))
        if len(sample.sides) > 1 and self._console.is_terminal and self._console.width >= _SIDE_BY_SIDE:
            table = Table(expand=True)
            for side in sample.sides:
                table.add_column(self._heading(side), ratio=1, overflow="fold")
            table.add_row(*(self._side(sample, side) for side in sample.sides))
            self._console.print(table)
            return
        for side in sample.sides:
            if side.name:
                self._print(self._heading(side))
            self._print(self._side(sample, side))

    def _title(self, number: int, sample: Sample) -> Text:
        parts = [f"{self._signs.rule * 2} sequence {number}", origins(sample)]
        if len(sample.sides) == 1:
            parts.append(sizes(sample.sides[0]))
        if sample.media:
            parts.append(media(sample.media))
        if sample.label is not None:
            parts.append(self._signs.wanted if sample.label else self._signs.unwanted)
        return self._text(self._signs.between.join(filter(None, parts)), "bold cyan")

    def _heading(self, side: Side) -> Text:
        return self._text(f"{side.name}: {sizes(side)}", "bold")

    def _side(self, sample: Sample, side: Side) -> Text:
        made, left = Text(), _SHOWN
        for border, run in stretches(side.tokens, sample.borders):
            if border is not None:
                made.append("" if made.plain.endswith("\n") else "\n")
                made.append_text(self._ruled(named(border))).append("\n")
            run = run[:left]
            left -= len(run)
            if run:
                made.append_text(self._run(run))
        hidden = len(side.tokens) - _SHOWN
        if hidden > 0:
            made.append_text(self._text(f"\n… {hidden:,} more (preview.html=PATH shows all)", _BORDER))
        if made.plain.endswith("\n"):  # print ends the line itself
            made.right_crop(1)
        return made

    def _run(self, run: list[Token]) -> Text:
        """A stretch of tokens that are alike in what the loss makes of them."""
        trained, weight = run[0].trained, run[0].weight
        made = Text()
        factor = f"{self._signs.times}{weight:g} " if trained and weight != 1 else ""
        if trained and self.marked:
            made.append(self._signs.opening)
        made.append(factor, _BORDER)
        if self.marked:
            text = "".join(map(self._token, run))
            if self._signs is _ASCII:  # two tokens may look like a mark together, or one beside ours
                text = _unlike_marks(text, self._signs.closing if trained else self._signs.opening)
            made.append_text(self._text(text))
        for special, group in () if self.marked else groupby(run, key=lambda token: token.special):
            text = "".join(map(self._token, group))
            made.append_text(self._text(text, _STYLES[trained, special]))
        if trained and self.marked:
            made.append(self._signs.closing)
        return made

    def _token(self, token: Token) -> str:
        text = escaped(token.text) if self._signs is _ASCII else visible(token.text)
        if self.marked:  # a mark that stands in the data must not look like one of ours
            text = text.replace("⟦", "⟨U+27E6⟩").replace("⟧", "⟨U+27E7⟩")
        repeated = token.special and len(token.ids) > 1
        return f"{text}{self._signs.times}{len(token.ids)} " if repeated else text

    def _legend(self) -> Text:
        if self.marked:
            return self._text(f"{self._signs.opening}trained{self._signs.closing} masked")
        trained = ("trained", _STYLES[True, False]), " ", ("special", _STYLES[True, True])
        return Text.assemble(*trained, "  ", ("masked", _STYLES[False, False]), " ", ("special", _STYLES[False, True]))
