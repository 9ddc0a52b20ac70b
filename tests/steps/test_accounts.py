"""What the check of rows and tokens says."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from factory.steps import accounts

COUNTS = {"rows": 40, "used": 36, "validation": 2, "not_sampled": 0, "dropped": {"it is empty": 2}}


@pytest.mark.parametrize(("planned", "passed"), [(2062, True), (2061, False)])
def test_tokens_of_the_steps_are_not_called_trained(
    planned: int, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are prompts too: what a run says is trained of its rows is what counts in the loss."""
    told = dict[str, tuple[bool, str]]()
    run = cast(Any, SimpleNamespace(check=lambda name, passed, detail: told.update({name: (passed, detail)})))
    monkeypatch.setattr(accounts, "tokens_planned", lambda run, dataset, steps: planned)
    accounts.check_tokens(run, cast(Any, None), COUNTS, 9, 2062)
    said = (
        f"40 of 40 rows are accounted for; 2,062 tokens went through the steps, {planned:,} by the data and its order"
    )
    assert told == {"tokens_accounted": (passed, said)}
