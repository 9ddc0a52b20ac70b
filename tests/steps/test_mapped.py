"""What was copied out of a weights' file is not resident any more, and nothing else of it is lost."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import core_model_loading as loading

from factory.steps.mapped import let_go_of

NUMBERS = 8 * 2**20


def resident(file: Path) -> int:
    """Bytes of it."""
    found = re.findall(
        rf"^\S+-\S+ .* {re.escape(str(file))}\n(?:\w+: .*\n)*?Rss: +(\d+) kB",
        Path("/proc/self/smaps").read_text(),
        re.M,
    )
    assert found, "it is not mapped"
    return 1024 * sum(map(int, found))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    drawn = torch.randn(NUMBERS + 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"first": drawn[:3].clone(), "large": drawn[3:].clone()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("wanted", "stays"), [(torch.float32, False), (torch.bfloat16, True)])
def test_what_was_copied_is_let_go_of(wanted: torch.dtype, stays: bool, file: Path) -> None:
    """What was not lies in the file."""
    with safe_open(file, framework="pt") as saved, let_go_of():
        made = loading._materialize_copy(saved.get_slice("large"), "cpu", wanted)
        first = loading._materialize_copy(saved.get_slice("first"), "cpu", wanted)
        made.sum()  # what lies in the file is read when it is needed
        assert (resident(file) > NUMBERS) == stays
        again = saved.get_tensor("large")
    drawn = torch.randn(NUMBERS + 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(made, drawn[3:].to(wanted)) and torch.equal(first, drawn[:3].to(wanted))
    assert torch.equal(again, drawn[3:])


def test_without_it_they_stay(file: Path) -> None:
    """Or transformers does so itself."""
    before = loading._materialize_copy
    with let_go_of():
        assert loading._materialize_copy is not before
    assert loading._materialize_copy is before
    with safe_open(file, framework="pt") as saved:
        made = loading._materialize_copy(saved.get_slice("large"), "cpu", torch.float32)
        assert resident(file) > NUMBERS
    assert made.dtype == torch.float32


def test_what_lies_in_memory_is_left() -> None:
    given = torch.ones(NUMBERS, dtype=torch.bfloat16)
    with let_go_of():
        made = loading._materialize_copy(given, "cpu", torch.float32)
    assert torch.equal(given, torch.ones_like(given)) and torch.equal(made, torch.ones(NUMBERS))
