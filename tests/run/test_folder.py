"""A run's folder is held by one process at a time."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from factory.refusal import UserError
from factory.run.folder import RunFolder


def test_a_folder_that_another_holds_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(), pytest.raises(UserError, match=r"\[folder-in-use\]"), folder.claimed():
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_holds_a_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that another holds it would have new folders made for ever."""

    def refuses(*_: Any) -> None:
        raise OSError(number, "")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with RunFolder(tmp_path / "run").claimed() as lock:
        assert lock > 2
