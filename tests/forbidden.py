"""A folder that its owner alone may enter, as it is for others: a test is often root, whom no permission stops."""

import os
from errno import EACCES
from pathlib import Path
from typing import Any

import pytest


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the folder can be neither seen nor read by its path; of a file, the file cannot be read."""
    folder = folder.absolute()
    stat, opened = Path.stat, Path.open

    def seen(self: Path, **how: Any) -> os.stat_result:
        if folder in self.absolute().parents:
            raise PermissionError(EACCES, os.strerror(EACCES), str(self))
        return stat(self, **how)

    def read(self: Path, *words: Any, **how: Any) -> Any:
        if folder in (self.absolute(), *self.absolute().parents):
            raise PermissionError(EACCES, os.strerror(EACCES), str(self))
        return opened(self, *words, **how)

    monkeypatch.setattr(Path, "stat", seen)
    monkeypatch.setattr(Path, "open", read)
