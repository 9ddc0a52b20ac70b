"""What libraries warn of during a run: it goes into run.log, where the process's standard error goes, and is counted.

Both of their ways are heard: Python's `warnings`, and the records of `logging` from WARNING on.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

# libraries whose loggers may print for themselves, and then tell the root logger nothing
_LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "DeepSpeed", "peft", "torch", "transformers")
_TOLD = 20  # that the report has; all are counted, and stand in run.log


@dataclass(slots=True)
class Heard:
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Each text is told once."""
        self.count += 1
        line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        if len(self.first) < _TOLD and line not in self.first:
            self.first.append(line)

    def summary(self) -> dict[str, Any]:
        """The report's `warnings`."""
        return {"count": self.count, "first": self.first}


@contextmanager
def hearing(heard: Heard) -> Iterator[None]:
    """Everything that is warned of in the body."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        heard.add(f"{category.__name__}: {message}")
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))

    before, warnings.showwarning = warnings.showwarning, show
    handlers = [(logging.getLogger(), _Root(heard)), *((logging.getLogger(name), _Own(heard)) for name in _LIBRARIES)]
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        warnings.showwarning = before
        for logger, handler in handlers:
            logger.removeHandler(handler)


class _Own(logging.Handler):
    """Of a library's own logger, which prints: counted alone, and only where the root logger is not told."""

    def __init__(self, heard: Heard):
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger(record.name.partition(".")[0]).propagate:
            self._heard.add(f"{record.name}: {record.getMessage()}")


class _Root(logging.StreamHandler[TextIO]):
    """Of everybody else."""

    def __init__(self, heard: Heard):
        super().__init__()
        self._heard = heard
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.add(f"{record.name}: {record.getMessage()}")
        super().emit(record)
