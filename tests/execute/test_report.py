"""What a report holds its run against."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conftest import compiled

from factory.data.batches import padded
from factory.execute.report import for_rows, memory_as_estimated
from factory.plan import ForLength


def test_memory_is_held_against_the_rows_that_came() -> None:
    """Between the planned lengths, linearly; elsewhere the plan's own figure stands."""
    whole = compiled("hardware=cpu", training=False).estimate
    lengths = (ForLength(length=100, bytes=1000), ForLength(length=200, bytes=3000))
    estimate = replace(whole, memory_by_length=lengths)
    assert for_rows(estimate, 150) == {"longest_row": 150, "bytes": 2000}
    assert for_rows(estimate, 50) == {"longest_row": 50, "bytes": 0}  # goes on as between the first two
    assert for_rows(estimate, 200) == for_rows(estimate, 0) == for_rows(estimate, None) == {}
    assert for_rows(replace(whole, memory_by_length=()), 150) == {}
    (check,) = memory_as_estimated(2000, 2000, 150).values()
    assert "for rows of up to 150 tokens (+0 %)" in check["detail"]


def test_shorter_rows_are_estimated_by_the_same_formulas() -> None:
    """The plan of rows that may be no longer has that very figure."""
    given = ("hardware=cpu", "data.max_length=64", "data.truncation=keep_response")
    longer, shorter = (compiled(*given[:-2], *more, training=False).estimate for more in ((), given[-2:]))
    longest = longer.memory_by_length[-1]
    assert longest.bytes == longer.memory.total
    assert [each.length for each in longer.memory_by_length] == sorted(
        {each.length for each in longer.memory_by_length}
    )
    near = for_rows(longer, 64)["bytes"]
    assert abs(near / shorter.memory.total - 1) < 0.02
    packed = compiled("hardware=cpu", "stage=pt", training=False)
    assert packed.steps.pack.packing and packed.estimate.memory_by_length == ()


def test_a_run_of_short_rows_tells_how_long_they_were(execute: Callable[..., Any]) -> None:
    done = execute("stage.num_epochs=1", "stage.batch_size=16", "data.max_samples=12", "method=lora")
    assert done.result["train"]["longest_row"] == padded(max(len(row.ids) for row in done.dataset.train))
