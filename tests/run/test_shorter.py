"""A finished run is held against the estimate of the rows that came."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled
from rich.console import Console

from factory.data.batches import padded
from factory.plan.anew import Anew
from factory.plan.plan import Plan
from factory.run.report_shown import report_panel
from factory.run.shorter import for_the_rows

LINE = ("hardware=cpu", "data.max_length=512", "compute.attention=sdpa")


def _report(plan: Plan, peak: int, longest: int) -> dict[str, Any]:
    memory = {"peak_bytes": peak, "estimated_bytes": plan.estimate.memory.total}
    return {"memory": memory, "train": {"longest_row": longest}, "checks": {"template": {}}, "estimate": {"time": 1}}


def test_the_estimate_is_that_of_a_plan_of_such_rows(here: Path) -> None:
    plan = compiled(*LINE, training=False)
    shorter = compiled(*LINE, "data.max_length=64", training=False).estimate.memory.total
    assert shorter < 0.9 * plan.estimate.memory.total  # libraries are a quarter of it, more where torch has CUDA
    told = for_the_rows(plan, _report(plan, shorter, 64), Anew())
    assert told["memory"]["estimated_for"] == {"longest_row": 64, "bytes": shorter}
    assert told["memory"]["estimated_bytes"] == plan.estimate.memory.total
    assert told["estimate"] == {"time": 1, "memory_error": 0.0}
    check = told["checks"].pop("memory_as_estimated")
    assert check["passed"] and check["detail"].endswith("estimated for rows of up to 64 tokens")
    assert told["checks"] == {"template": {}}
    off = for_the_rows(plan, _report(plan, 2 * shorter, 64), Anew())
    assert not off["checks"]["memory_as_estimated"]["passed"]


@pytest.mark.parametrize(("stage", "sequences"), [("sft", 1), ("dpo", 2)])
def test_where_nothing_is_padded_it_is_of_batches(stage: str, sequences: int, here: Path) -> None:
    """A row may be longer than the mean of its batch, and both answers are in it."""
    line = (*LINE, "compute.attention=per_document", f"stage={stage}", "stage.batch_size=4")
    plan = compiled(*line, training=False)
    told = for_the_rows(plan, _report(plan, 10**9, 64), Anew())
    wanted = f"estimated for batches of up to {64 * 4 * sequences} tokens"
    assert told["checks"]["memory_as_estimated"]["detail"].endswith(wanted)
    told |= {"parameters": {"trainable": 1, "total": 2}, "train": {}, "checks": {}}
    panel = Console(width=200)
    with panel.capture() as shown:
        panel.print(report_panel(told, here))
    assert f"{wanted.removeprefix('estimated')})" in shown.get()


def test_what_is_not_known_changes_nothing(here: Path) -> None:
    plan = compiled(*LINE, training=False)
    report = _report(plan, 10**9, 64)
    assert for_the_rows(plan, report, None) is report
    assert for_the_rows(plan.with_settings(seed=plan.settings.seed + 1), report, Anew()) is report  # of other overrides
    for longest in (0, 512):
        as_long = _report(plan, 10**9, longest)
        assert for_the_rows(plan, as_long, Anew()) is as_long
    packed = compiled("hardware=cpu", "stage=pt", training=False)
    fewer = replace(plan.steps.patch, activation_checkpointing=True, recomputed_layers=3)
    otherwise = replace(plan, steps=replace(plan.steps, patch=fewer))
    assert for_the_rows(otherwise, report, Anew()) is report  # `auto` recomputes less of shorter rows
    assert for_the_rows(packed, report, Anew()) is report


def test_a_run_tells_how_long_its_rows_were(execute: Callable[..., Any]) -> None:
    rows = ("stage.num_epochs=1", "stage.batch_size=16", "data.max_samples=12", "method=lora")
    done = execute(*rows, "compute.attention=sdpa")
    lengths = [len(row.ids) for row in done.dataset.train]
    assert done.result["train"]["longest_row"] == padded(max(lengths))
    free = execute(*rows, "compute.attention=per_document", folder="free")
    assert free.result["train"]["longest_row"] == ceil(padded(sum(lengths)) / 16)  # of one row with all tokens
