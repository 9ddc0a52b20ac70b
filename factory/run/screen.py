"""What a person sees, in the terminal and in run.log alike."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from factory.config.redact import redacted, redacting
from factory.outlet import loss

_LOG_WIDTH = 120
WHOSE = {"held_out": "held-out rows", "train": "rows that train"}  # rows that something is measured on


def console(**how: Any) -> Console:
    """One that prints what it is given: numbers in no colours of their own, and `my_metrics:boom:` is no emoji."""
    return Console(highlight=False, emoji=False, **how)


class Screen:
    """Prints to the terminal and, once a run's folder is claimed, to its log."""

    def __init__(self) -> None:
        self.console = console(file=redacting(sys.stdout), soft_wrap=False)
        self.log: Console | None = None
        self._loss_logged = False
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def write_to(self, log: Path | None) -> None:
        if self.log is not None:
            with suppress(OSError):  # what a full disk did not take
                self.log.file.close()
        file = log.open("a", encoding="utf-8", buffering=1) if log else None
        self.log = console(file=redacting(file), width=_LOG_WIDTH, no_color=True) if file else None

    def print(self, what: Any, *, style: str | None = None, soft_wrap: bool = False) -> None:
        """`soft_wrap` leaves long lines to the terminal, so that a command can be copied whole."""
        markup = not isinstance(what, str)  # a refusal's [rule-id] is no markup
        what = redacted(what) if isinstance(what, str) else what  # before its lines are broken
        self.console.print(what, style=style, soft_wrap=soft_wrap, markup=markup)
        if self.log is not None:
            with suppress(OSError):  # a full disk must not hide the message from the terminal
                self._log_loss(self.log)
                self.log.print(what, soft_wrap=soft_wrap, markup=markup)

    def _log_loss(self, log: Console) -> None:
        """Once, that the log alone has it from here on."""
        if not self._loss_logged and (error := loss(self.console.file)) is not None:
            self._loss_logged = True
            log.print(f"Standard output cannot be written ({error.strerror}): what follows is in this file alone.")

    def progress(self, name: str, done: int, total: int) -> None:
        """A bar for each stretch of work; in a file or a pipe, only its end."""
        if not self.console.is_terminal:
            return
        if self._progress is None:
            columns = (
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note="")
        self._progress.update(self._tasks[name], completed=done, total=total)

    def note(self, name: str, text: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.update(self._tasks[name], note=text)

    def stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}


def fitting(widths: Mapping[str, int], width: int, least: Sequence[str], *, gap: int) -> list[str]:
    """The columns that there is room for with gaps between them; `least` may be left out, in that order."""
    kept, left = list(widths), list(least)
    while left and sum(widths[name] + gap for name in kept) + 1 > width:
        kept.remove(left.pop(0))
    return kept


def grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    return table
