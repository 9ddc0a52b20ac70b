"""What libraries warn of during a run is counted, told in the report and left in what the process prints."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory.execute.heard import Heard, hearing
from factory.execute.report import write_report
from factory.run.report_shown import report_panel


def test_both_ways_are_heard(capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    with hearing(heard):
        warnings.warn("an old way\nof more lines", FutureWarning, stacklevel=1)
        logging.getLogger("peft.tuners").warning("no %s matched", "module")
        logging.getLogger("somebody").error("lost")
        logging.getLogger("somebody").info("not of interest")
    assert heard.summary() == {
        "count": 3,
        "first": ["FutureWarning: an old way", "peft.tuners: no module matched", "somebody: lost"],
    }
    said = capsys.readouterr().err
    assert "an old way\nof more lines" in said and "no module matched" in said and "lost" in said
    with hearing(after := Heard()):
        pass
    logging.getLogger("somebody").error("lost")
    assert (heard.count, after.count) == (3, 0)


def test_a_library_that_prints_for_itself_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a logger of a new name and level: MLflow's migrations switch off those that are there, a preview is quiet."""
    library, heard = logging.getLogger("transformers"), Heard()
    of_it = logging.getLogger("transformers.one")
    of_it.setLevel(logging.WARNING)
    for propagates in (False, True):
        monkeypatch.setattr(library, "propagate", propagates)
        with hearing(heard):
            of_it.warning("to be initialized: %s", propagates)
    assert heard.first == [f"transformers.one: to be initialized: {propagates}" for propagates in (False, True)]
    assert heard.count == 2


def test_the_same_is_told_once_and_no_more_than_a_few() -> None:
    heard = Heard()
    for number in range(50):
        heard.add("the same")
        heard.add(f"number {number}")
    assert heard.count == 100
    assert len(heard.first) == 20 and heard.first[:3] == ["the same", "number 0", "number 1"]


def test_a_run_tells_of_them(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A test fails by a warning that nothing explains; the report has it, and the screen says how many."""
    from factory.steps import save

    real, runs = save._write, list[Any]()

    def warning(run: Any, *rest: Any) -> None:
        real(run, *rest)
        runs.append(run)
        warnings.warn("this will go", FutureWarning, stacklevel=1)

    monkeypatch.setattr(save, "_write", warning)
    with pytest.raises(AssertionError, match="FutureWarning: this will go"):
        execute("stage.max_steps=1", "data.max_samples=8", "method.rank=2")
    (run,) = runs
    write_report(run, "finished", {}, None)
    report = json.loads(run.folder.report.read_text())
    assert "FutureWarning: this will go" in report["warnings"]["first"]
    console = Console(width=100)
    with console.capture() as shown:
        console.print(report_panel(report, Path("run")))
    assert f"warnings  {report['warnings']['count']} of libraries, in run/run.log" in shown.get()
    report["data"] = {"rows": 1040, "used": 11, "validation": 1, "not_sampled": 1025, "dropped": {"output is empty": 3}}
    with console.capture() as shown:
        console.print(report_panel(report, Path("run")))
    assert "1 held out, 1,025 not sampled, 3 dropped of 1,040" in shown.get()
