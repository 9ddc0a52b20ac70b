"""File systems of a test's own, in memory, where mounting is allowed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(*words: str) -> None:
    """Skips the test where it is not allowed."""
    done = shutil.which("mount") and subprocess.run(["mount", *words], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip("mounting a file system is not allowed here")


@contextmanager
def in_memory(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes at the folder, which is made."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The folder as it is, but nobody can write into it: not even root, whom no permission stops."""
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(folder: Path, count: int) -> Path:
    """Fills the disk up to so many bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - count))
    return filler
