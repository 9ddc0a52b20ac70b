"""What of a process's memory is pages of libraries' files."""

import mmap
import sys
from pathlib import Path

import pytest

from factory.execute.memory import library_pages


@pytest.mark.parametrize(("name", "counted"), [("lib.so.1", True), ("weights.safetensors", False)])
def test_only_libraries_files_are_counted(name: str, counted: bool, tmp_path: Path) -> None:
    """A file of 32 MiB is mapped and read: weights are mapped too, and a plan knows of them."""
    size = 32 * 2**20
    path = tmp_path / name
    path.write_bytes(b"\1" * size)
    before = library_pages()
    if before is None:
        assert sys.platform != "linux"
        return
    assert before >= 2**20  # Python's own
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == size // mmap.PAGESIZE
        after = library_pages()
    assert after is not None
    assert (after - before >= size) == counted and (counted or after - before < 2**20)
