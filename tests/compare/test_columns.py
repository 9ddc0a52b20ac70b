"""What a column takes from a report."""

import pytest

from factory.compare.columns import columns
from factory.compare.runs import Run


def measured(**figures: float) -> Run:
    return Run(name="a", where="a", status="finished", options={}, report={"evaluate": figures})


def test_rouge_is_the_mean_of_the_three_where_all_are_there() -> None:
    whole, part = measured(rouge1=30.0, rouge2=9.0, rougeL=21.0), measured(rouge1=30.0, rougeL=21.0)
    (found,) = (column for column in columns([whole, part]) if column.key == "rouge")
    assert found.value(whole) == pytest.approx(20.0) and found.value(part) is None
    assert "rouge" not in [column.key for column in columns([part])]


def test_a_slow_run_is_told_from_one_that_stands_still() -> None:
    slow = Run(name="a", where="a", status="finished", options={}, report={"train": {"tokens_per_second": 0.34}})
    fast = Run(name="b", where="b", status="finished", options={}, report={"train": {"tokens_per_second": 1234.5}})
    (found,) = columns([slow, fast])
    assert (found.text(slow), found.text(fast)) == ("0.34", "1,234")
