"""What runs add to the machine's calibration: whole or not at all, however many write, and a broken file is said."""

import errno
import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.execute.report import errors, write_report
from factory.plan.facts import Measured
from factory.plan.inspect import calibration
from factory.plan.inspect.machine import look_at_machine
from factory.plan.plan import Span
from factory.run.folder import RunFolder
from factory.run.report_shown import _estimates, report_panel

RUN = Measured(
    device="CPU",
    precision="bfloat16",
    kind="pt, lora, whole",
    work=1e8,
    micro_batch=512,
    flops_per_second=1e11,
    start_seconds=1,
)


def test_the_latest_of_each_kind_are_kept(here: Path) -> None:
    other = replace(RUN, kind="pt, full, whole")
    calibration.add(other)
    for number in range(1, 12):
        calibration.add(replace(RUN, flops_per_second=number * 1e9))
    found, wrong = calibration.read()
    assert wrong is None
    assert [run.flops_per_second / 1e9 for run in found if run.kind == RUN.kind] == list(range(4, 12))
    assert other in found


def test_a_file_system_without_locks_holds_a_calibration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    calibration.add(RUN)
    assert calibration.read() == ((RUN,), None)


def test_writers_at_once_lose_nothing(here: Path) -> None:
    """Of three processes that add five each, of kinds of their own, all are there."""
    code = (
        "import sys; from dataclasses import replace; from factory.plan.facts import Measured; "
        "from factory.plan.inspect import calibration; "
        f"run = {RUN!r}; "
        "[calibration.add(replace(run, kind=sys.argv[1], work=float(n + 1))) for n in range(5)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, f"kind {number}"]) for number in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    found, _ = calibration.read()
    assert sorted((run.kind, run.work) for run in found) == [
        (f"kind {k}", n) for k in range(3) for n in (1, 2, 3, 4, 5)
    ]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"runs": 3}', '{"runs": [{"device": "CPU"}]}', "\xff", '{"runs": [3]}', "null"],
)
def test_a_broken_file_is_said_and_left_aside(text: str, here: Path) -> None:
    calibration.FILE.parent.mkdir()
    calibration.FILE.write_bytes(text.encode("latin-1"))
    found, wrong = calibration.read()
    assert found == () and wrong is not None
    plan = compiled("hardware=cpu", training=False)
    assert plan.estimate.seconds is None
    assert any(".calibration.json" in warning for warning in plan.warnings)
    calibration.add(RUN)
    assert calibration.read() == ((RUN,), None)


def test_a_number_that_no_run_reaches_is_broken(here: Path) -> None:
    calibration.add(replace(RUN, flops_per_second=0.0))
    assert calibration.read()[0] == ()


def test_a_folder_that_cannot_be_written_is_no_loss(here: Path) -> None:
    Path("outputs").write_text("in the way")
    calibration.add(RUN)
    assert calibration.read()[1] is not None


def test_a_run_is_measured_and_the_next_is_planned_by_it(execute: Callable[..., Any], here: Path) -> None:
    words = ("stage=pt", "stage.max_steps=4", "stage.logging_steps=1", "method.rank=4", "data.max_length=64")
    done = execute(*words)
    machine = look_at_machine()
    found = calibration.measured(done.run.plan, done.run.folder, machine)
    assert found is not None
    first, last = done.metrics[0], done.metrics[-1]
    tokens, seconds = last["tokens"] - first["tokens"], last["seconds"] - first["seconds"]
    estimate = done.run.plan.estimate
    assert found.flops_per_second == pytest.approx(
        estimate.flops_per_step / estimate.tokens_per_step * tokens / seconds
    )
    assert found.start_seconds == pytest.approx(max(0, first["seconds"] - seconds / 3), rel=0.05, abs=1e-3)
    assert estimate.seconds is None
    calibration.add(found)

    again = compiled(*done.run.plan.overrides)
    assert again.digest() == done.run.plan.digest()  # a guess changes no result
    speed, took = again.estimate.speed, again.estimate.seconds
    assert speed is not None and took is not None
    assert speed.low < tokens / seconds < speed.high
    assert took.low < seconds * 4 / 3 < took.high

    done.run.plan = again
    write_report(done.run, "finished", done.result, None)
    report = json.loads(done.run.folder.report.read_text())
    assert report["estimate"].keys() == {"memory_error", "time_error", "seconds"}
    shown = _text(report_panel(report, done.run.folder.path))
    assert re.search(r"estimate  \S+ s of training, (not )?within ", shown), shown


def _text(panel: Any) -> str:
    from rich.console import Console

    console = Console(width=140, file=StringIO(), record=True)
    console.print(panel)
    return console.export_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [(-0.4194, "whose geometric mean of 9.3 s is 42 % less"), (0.004, "16 s of training, within 2.7 to 32 s")],
)
def test_the_middle_of_a_range_is_named(error: float, words: str) -> None:
    """A reader of 2.7 to 32 s takes 17.35 for its middle."""
    told = _estimates({"time_error": error, "seconds": {"low": 2.7, "high": 32.0}}, {"seconds": 16.0})
    assert told.endswith(words)


def test_one_step_tells_no_speed(here: Path) -> None:
    plan, folder = compiled("hardware=cpu", "stage.max_steps=1", training=False), RunFolder("run")
    folder.path.mkdir()
    assert calibration.measured(plan, folder, look_at_machine()) is None
    folder.metrics.write_text('{"step": 1, "seconds": 2.0, "tokens": 100}\n')
    assert calibration.measured(plan, folder, look_at_machine()) is None


def test_errors_are_signed_shares_of_what_came() -> None:
    """Of time, by the middle of the range: 10 to 40 s is 20 s."""
    estimate = replace(compiled("hardware=cpu", training=False).estimate, seconds=Span(low=10, high=40))
    total = estimate.memory.total
    found = errors(estimate, {"peak_bytes": 2 * total}, {"seconds": 10.0})
    assert (found["memory_error"], found["time_error"]) == (-0.5, 1.0)
    assert errors(estimate, {"peak_bytes": total}, {"seconds": 25.0})["time_error"] == -0.2
    assert "time_error" not in errors(estimate, {"peak_bytes": total}, {"seconds": 25.0, "stopped_early": True})
    assert errors(replace(estimate, seconds=None), {"peak_bytes": None}, None) == {}
