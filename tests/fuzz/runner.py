"""Cases of one target, one after the other: what became of them, and the faults."""

import contextlib
import importlib
import io
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from factory.cache import folder as cache_folder
from factory.config.refusal import UserError
from factory.plan.inspect import machine
from fuzz.guard import Broken, guarded, little_memory, never_stuck

Case = Callable[[random.Random], str]
REFUSED = "refused"
_SHOWN = 12


@dataclass(slots=True)
class Found:
    """`faults`: the first traceback of each kind, by where it came from, with the number of its case."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)
    seconds: float = 0.0

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} {name}" for name, count in self.outcomes.most_common(_SHOWN))
        slowest, case = self.slowest
        took = f"{self.seconds:.0f} s, the slowest (case {case}) {slowest:.2f} s"
        return f"{self.outcomes.total():,} cases: {told}; {took}"


def run(target: str, count: int, folder: Path, *, first: int = 0) -> Found:
    """Cases `first`, `first` + 1 … of the target, within a folder of its own, which is the working folder meanwhile."""
    found = Found()
    with _inside(folder), pytest.MonkeyPatch.context() as patches:
        patches.setattr(machine, "installed_version", cache(machine.installed_version))  # a third of a plan's time
        case = importlib.import_module(f"fuzz.{target}").opened(folder)
        with contextlib.suppress(Exception):  # what is imported and cached once is no case's
            case(random.Random(f"{target}:warm"))
        started = time.monotonic()
        with little_memory(), contextlib.suppress(KeyboardInterrupt):  # what was found until then is told
            for number in range(first, first + count):
                begun = time.monotonic()
                with never_stuck():
                    _one(case, target, number, folder, found)
                found.slowest = max(found.slowest, (time.monotonic() - begun, number))
        found.seconds = time.monotonic() - started
    return found


def _one(case: Case, target: str, number: int, folder: Path, found: Found) -> None:
    chance = random.Random(f"{target}:{number}")
    quiet = io.StringIO()
    try:
        with guarded(folder, cache_folder()), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            outcome = case(chance)
    except UserError as error:
        outcome = f"{REFUSED} ({error.refusals[0].rule})"
    except (Exception, Broken) as error:
        outcome = "FAULT"
        found.faults.setdefault(_kind(error), (number, "".join(traceback.format_exception(error)[-12:])))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        outcome = "FAULT"  # a panic of a library in Rust
        found.faults.setdefault(_kind(error), (number, "".join(traceback.format_exception(error)[-12:])))
    found.outcomes[outcome] += 1


def _kind(error: BaseException) -> str:
    """The exception's type and its last place in the product."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}factory{os.sep}" in frame.filename]
    place = (ours or frames)[-1]
    return f"{type(error).__name__} {place.filename.rpartition('factory' + os.sep)[2]}:{place.lineno}"


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        tempfile.tempdir = before
