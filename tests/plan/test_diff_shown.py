"""Two plans side by side as a person reads them: in the terminal's width, in the words that things are set by."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import compiled

from factory.config.words import size
from factory.plan import diff
from factory.plan.diff_shown import as_text
from factory.plan.plan import Plan, Span

Made = Callable[..., Plan]
LONG = tuple(f"tracking.experiment=number_{number}" for number in range(9))


@pytest.fixture
def made(here: Path, tiny_model: Path) -> Made:
    base = ("hardware=cpu", "hardware.memory=4GB", "tracking=none", f"model.path={tiny_model}")
    return lambda *overrides: compiled(*base, *overrides)


def told(one: Plan, other: Plan, width: int = 80) -> list[str]:
    return as_text(diff.differences(one, other), ("one", "other"), width).splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_but_for_what_is_one_word(width: int, made: Made) -> None:
    other = made("data=demo_tools", "method=dora", "data.max_length=64", "stage.batch_size=1", *LONG)
    for line in told(made(), other, width):
        assert len(line) <= width or len(line.split()) <= 2, line


def test_of_lists_it_is_what_was_taken_out_and_put_in(made: Made) -> None:
    """A note is told whole, however long it is."""
    one, other = made("seed=1", "stage.logging_steps=3"), made("stage.logging_steps=3", "method.rank=4")
    note = " ".join(f"word{number}" for number in range(40))
    lines = told(one, replace(other, notes=(*one.notes, note)))
    at = lines.index("  overrides")
    assert lines[at + 1 : at + 3] == ["    - seed=1", "    + method.rank=4"]
    assert not any("logging_steps" in line for line in lines)
    assert f"+ {note}" in " ".join(" ".join(lines).split())


def test_an_order_of_overrides_is_told(made: Made) -> None:
    one = made("seed=1", "method.rank=4")
    lines = told(one, one.with_settings(overrides=(*one.overrides[:-2], *reversed(one.overrides[-2:]))))
    assert any("another order" in line for line in lines)


def test_what_can_be_set_is_named_as_it_is_set(made: Made) -> None:
    lines = told(made(), made("data.max_length=512", "method.rank=4", "model.rope_scaling=linear"))
    names = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {"data.max_length", "method.rank", "model.rope_scaling", "attach.trainable"} <= names
    assert not names & {"pack.max_length", "patch.rope_scaling"}


def test_bytes_and_seconds_are_written_as_a_plan_shows_them(made: Made) -> None:
    one, other = made(), made("data.max_length=64", "stage.batch_size=1")
    seconds = {"low": 30.04321, "high": 100.5}
    timed = [replace(each, estimate=replace(each.estimate, seconds=None)) for each in (one, other)]
    timed[1] = replace(other, estimate=replace(other.estimate, seconds=Span(**seconds)))
    lines = [line.strip() for line in told(*timed)]
    totals = [size(each.estimate.memory.total) for each in (one, other)]
    assert any(line.split(maxsplit=1) == ["estimate.memory.total", " -> ".join(totals)] for line in lines)
    assert any(line.startswith("estimate.seconds.low") and line.endswith("(absent) -> 30 s") for line in lines)
    assert not any(line.startswith("estimate.seconds ") for line in lines)  # null, as the two beneath it say
    assert not any(str(one.estimate.memory.total) in line or "instants" in line for line in lines)
    (aside,) = (line for line in lines if line.endswith("plan.format=json has them"))
    hidden = [each for each in diff.differences(*timed).rest if each.key.startswith("estimate.")]
    shown = [line for line in lines if line.startswith("estimate.")]
    assert aside.startswith(f"and {len(hidden) - len(shown) - 1} more")  # but for the null


def test_a_set_that_only_one_plan_has_is_told_at_once(made: Made) -> None:
    lines = told(made(), made("data=demo_tools"))
    at = lines.index("  data.sources.demo")
    assert lines[at + 1].startswith("    - origin=file") and "sha256=" in "".join(lines[at + 1 : at + 5])
    assert sum("data.sources.demo." in line for line in lines) == 1  # its path, which decides nothing
    assert not any("subset" in line for line in lines)
