"""The benchmark of GPUs makes its cases where there is none too, on a tiny model."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_case_is_a_row(tmp_path: Path) -> None:
    words = ["--size", "tiny", "--device", "cpu", "--out", str(tmp_path), "--only", "qlora sdpa"]
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py", *words], capture_output=True, text=True, check=True)
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| qlora sdpa")]
    memory, speed = row.split(" | ")[1:3]
    assert float(memory.split()[0]) > 0 and int(speed.replace(",", "")) > 0
