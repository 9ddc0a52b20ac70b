"""What a person reads of a report."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from factory.data.batches import read
from factory.execute.report import mostly_dropped
from factory.run.report_shown import report_panel
from factory.steps.engine import Engine

WAYS = ((), ("stage.gradient_accumulation_steps=2",), ("data.packing=true",))
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


@pytest.mark.parametrize(
    ("used", "sequences", "seen", "told"),
    [
        (36, 36, 36, "36 rows trained"),
        (36, 36, 8, "8 of 36 rows trained"),
        (36, 12, 12, "36 rows trained"),
        (36, 12, 4, "4 of 12 sequences trained, of 36 rows"),
        (36, None, None, "36 rows trained"),  # an earlier report
    ],
)
def test_rows_that_no_step_came_to_were_not_trained(
    used: int, sequences: int | None, seen: int | None, told: str
) -> None:
    data = {"rows": 40, "used": used, "validation": 4, "dropped": {}, "sequences": sequences}
    train = {"steps": 4, "tokens": 9, "seconds": 1, "tokens_per_second": 9, "first_loss": 3.0, "final_loss": 2.0}
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=140, file=StringIO(), record=True)
    console.print(report_panel({**sizes, "data": data, "train": {**train, "sequences": seen}}, Path("run")))
    assert f" {told}, 4 held out" in console.export_text()


@pytest.mark.parametrize(
    ("data", "rows", "evaluate", "told"),
    [
        ((22, 2), {"count": 2, "set": None}, {"perplexity": 2.0}, "2 of 24 rows measured, 22 not looked at, 0 dropped"),
        ((24, 0), {"count": 24, "set": None}, {"perplexity": 2.0}, "24 of 24 rows measured, 0 not looked at"),
        ((0, 24), {"count": 24, "set": "shop"}, {"perplexity": 2.0}, "24 of 24 rows measured, 0 not looked at"),
        ((20, 4), {"count": 4, "set": "shop"}, {"perplexity": 2.0}, "4 of 24 rows measured, 20 not looked at"),
        ((22, 2), {"count": 0, "set": None}, {"generation": {"rows": 1}}, "1 of 24 rows measured, 23 not looked at"),
        ((22, 2), {"count": 0, "set": None}, {"benchmarks": {}}, "0 of 24 rows measured, 24 not looked at"),
        (None, {"count": 4, "set": None}, {"perplexity": 2.0}, "4 rows measured of a stream"),
    ],
)
def test_of_a_model_that_is_not_trained_it_is_said_how_many_rows_were_measured(
    data: tuple[int, int] | None, rows: dict[str, Any], evaluate: dict[str, Any], told: str
) -> None:
    found = data and {"rows": 24, "used": data[0], "validation": data[1], "dropped": {}}
    if "generation" in evaluate:
        evaluate["generation"] |= {"counted_by": "words", "signatures": {}}
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=140, file=StringIO(), record=True)
    report = {**sizes, "data": found or {}, "evaluate": evaluate, "measured_rows": rows}
    console.print(report_panel(report, Path("run")))
    shown = console.export_text()
    assert told in shown
    part = rows["set"] is None and data is not None and "rows measured, 24" not in told and " 0 not" not in told
    assert ("data.validation=NAME measures the set of that name whole" in shown) is part
    if rows["set"]:
        assert "2.000 on the rows of shop" in shown


@pytest.mark.parametrize(("validation", "whose"), [(3, "held-out rows"), (0, "rows that train")])
def test_it_is_said_whose_rows_were_answered(validation: int, whose: str) -> None:
    how = {"rows": 3, "counted_by": "words", "signatures": {"rougeL": "f1"}}
    data = {"rows": 9, "used": 9 - validation, "validation": validation, "dropped": {}}
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=140, file=StringIO(), record=True)
    console.print(report_panel({**sizes, "data": data, "evaluate": {"rougeL": 1.0, "generation": how}}, Path("run")))
    assert f"of 3 {whose}, counted by words" in console.export_text()


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        *((steps, (*more, "data.max_samples=30")) for steps in (2, 40) for more in WAYS),
        (2, ("data.streaming=true", "data.shuffle_buffer=4")),
    ],
)
def test_a_run_counts_what_its_steps_came_to(
    steps: int, more: tuple[str, ...], execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = set[bytes](), Engine.accumulate

    def accumulate(self: Engine, update: Any) -> Any:
        seen.update(row[row != 0].numpy().tobytes() for batch in update.batches for row in read(batch))
        return real(self, update)

    monkeypatch.setattr(Engine, "accumulate", accumulate)
    asked = ("stage.batch_size=2", f"stage.max_steps={steps}", "compute.attention=eager", "evaluate.perplexity=false")
    done = execute(*asked, *more, "method.rank=4")
    train, data = done.result["train"], done.result["data"]
    assert train["sequences"] == len(seen)
    assert (train["sequences"] < data["sequences"]) == (steps == 2)


def test_a_run_says_so_before_it_trains(execute: Callable[..., Any]) -> None:
    done = execute("stage=rm", "method.rank=4", "stage.max_steps=1", "data.max_length=150", "evaluate.perplexity=false")
    data = done.result["data"]
    assert data["dropped"][LONG] > data["rows"] / 2
    events = [json.loads(line) for line in done.run.folder.events.read_text().splitlines()]
    names = [event.get("text", event.get("name")) for event in events if event["event"] in ("note", "start")]
    (said,) = (name for name in names if name.startswith("More than half of the rows"))
    assert names.index(said) < names.index("train")


@pytest.mark.parametrize(
    ("step", "value", "saved", "told"),
    [
        (None, None, False, "no evaluation was finite"),
        (1200, 2.5, True, "step 1,200: loss 2.500 on the held-out rows, the model that is saved"),
        (4, 2.5, False, "step 4: loss 2.500 on the held-out rows, not the one that is saved"),
    ],
)
def test_the_best_evaluation_is_told_where_there_was_one(
    step: int | None, value: float | None, saved: bool, told: str
) -> None:
    best = {"metric": "loss", "step": step, "value": value, "saved_model": saved}
    train = {"steps": 4, "tokens": 9, "seconds": 1, "tokens_per_second": 9, "first_loss": None, "final_loss": None}
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=140, file=StringIO(), record=True)
    console.print(report_panel({**sizes, "train": {**train, "best": best}}, Path("run")))
    assert told in console.export_text()


@pytest.mark.parametrize("width", [80, 200])
def test_no_figure_of_a_task_is_cut(width: int) -> None:
    figure = {"value": 0.2512, "error": 0.0435}
    each = {
        "questions": 1319,
        "of": 1319,
        "shots": 5,
        "group": "gsm",
        "metrics": {"exact_match/flexible-extract": figure},
    }
    sizes = {"parameters": {"trainable": 1, "total": 2}, "memory": {"peak_bytes": 1, "estimated_bytes": None}}
    console = Console(width=width, file=StringIO(), record=True)
    console.print(report_panel({**sizes, "evaluate": {"harness": {"gsm8k_chain_of_thought": each}}}, Path("run")))
    shown = console.export_text()
    assert all(number in shown for number in ("0.2512", "0.0435", "1,319")) and "…" not in shown
