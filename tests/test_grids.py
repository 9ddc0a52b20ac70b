"""What is thinned out is there."""

from pathlib import Path

import pytest
from grids import THINNED


@pytest.mark.parametrize("name", THINNED)
def test_a_thinned_test_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"def {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
