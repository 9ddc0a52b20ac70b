"""Changed by chance, a file gives the rows that its plain library reads, or a refusal, and nothing else."""

from collections import Counter
from pathlib import Path

import pytest
from fuzz_files import NAMES, SEEDS, check, expected


@pytest.mark.parametrize("name", NAMES)
def test_the_libraries_read_what_is_not_changed(name: str) -> None:
    assert expected(name, SEEDS[name])


def test_changed_files_are_rows_or_refused(tmp_path: Path) -> None:
    found = Counter(check(seed, tmp_path) for seed in range(320))
    assert min(found["rows"], found["refused"]) > 30


@pytest.mark.slow
def test_ten_thousand_changed_files_are_rows_or_refused(tmp_path: Path) -> None:
    found = Counter(check(seed, tmp_path) for seed in range(1_000, 11_000))
    assert min(found["rows"], found["refused"]) > 1_000
