"""What a person reads of a report."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory.execute.report import mostly_dropped
from factory.run.report_shown import report_panel

LONG, EMPTY = "longer than max_length", "an answer is empty"


@pytest.mark.parametrize(
    ("rows", "not_sampled", "dropped", "told"),
    [
        (200, 0, {LONG: 181}, f"181 of 200 ({LONG})"),
        (200, 0, {EMPTY: 5, LONG: 120}, f"125 of 200 (120 of them: {LONG})"),
        (2000, 1800, {LONG: 181}, f"181 of 200 ({LONG})"),
        (200, 0, {LONG: 100}, None),
        (200, 0, {}, None),
    ],
)
def test_it_is_said_when_most_rows_are_dropped(
    rows: int, not_sampled: int, dropped: dict[str, int], told: str | None
) -> None:
    used = rows - not_sampled - sum(dropped.values())
    data = {"rows": rows, "used": used, "validation": 0, "not_sampled": not_sampled, "dropped": dropped}
    said = told and f"More than half of the rows are dropped, {told}."
    assert mostly_dropped(data) == said
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=140, file=StringIO(), record=True)
    console.print(report_panel({**sizes, "data": data}, Path("run")))
    shown = console.export_text()
    assert (said or "") in shown and ("More than half" in shown) is (told is not None)


def test_a_run_says_so_before_it_trains(execute: Callable[..., Any]) -> None:
    done = execute("stage=rm", "method.rank=4", "stage.max_steps=1", "data.max_length=150", "evaluate.perplexity=false")
    data = done.result["data"]
    assert data["dropped"][LONG] > data["rows"] / 2
    events = [json.loads(line) for line in done.run.folder.events.read_text().splitlines()]
    names = [event.get("text", event.get("name")) for event in events if event["event"] in ("note", "start")]
    (said,) = (name for name in names if name.startswith("More than half of the rows"))
    assert names.index(said) < names.index("train")
