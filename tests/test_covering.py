"""Some of the covering array is executed; `make compat` executes all of it."""

from collections.abc import Iterator
from pathlib import Path

import compatibility
import covering
import pytest

ROWS = covering.read()
ELSEWHERE = {"fp16", "flash_attention_2", "flash_attention_3", "varlen"}  # on a GPU
FEW = ROWS[:: len(ROWS) // 40][:40]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with covering.prepared(tmp_path_factory.mktemp("covering")) as model:
        yield model


def test_the_array_names_every_option() -> None:
    """But for what has one value on a CPU, or needs a package that is not installed by itself."""
    for name, values in compatibility.FACTORS.items():
        if name in ROWS[0] and name not in covering._ONLY:
            assert {row[name] for row in ROWS} == {value for value in values if value not in ELSEWHERE}
    assert len(ROWS) <= 300


def test_it_holds_the_pairs_with_a_method() -> None:
    """Each pair that is in no row is refused: that of the others is not asked here, it would take a minute."""
    held = {pair for row in ROWS for pair in covering.pairs_of(row)}
    for method in compatibility.FACTORS["method"][::5]:
        for stage in compatibility.FACTORS["stage"]:
            pair = (("method", method), ("stage", stage))
            assert (pair in held) != bool(covering.verdict(dict(pair))), pair


@pytest.mark.parametrize("row", FEW, ids=covering.said)
def test_a_legal_combination_runs(row: covering.Row, model: Path) -> None:
    found = covering.outcome(row, model.parent / covering.said(row).replace(" ", "-"), model)
    assert found.wrong is None, " ".join(covering.overrides(row))
