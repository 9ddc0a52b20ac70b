"""A run's folder is held by one process at a time."""

import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from factory.config.refusal import UserError
from factory.run import folder
from factory.run.folder import MANIFEST, RunFolder, at_step


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


def test_a_checkpoint_whose_best_is_lost_is_passed_over(tmp_path: Path) -> None:
    """Each names the best before it; only where that is put back at the end is it needed."""
    folder, told = RunFolder(tmp_path), list[str]()
    for step, best in ((10, 10), (20, 20), (30, 10), (40, 20)):
        path = at_step(folder.checkpoints, step)
        path.mkdir(parents=True)
        state = json.dumps({"step": step, "best": {"step": best}})
        (path / "state.json").write_text(state)
        (path / MANIFEST).write_text(json.dumps({"files": {"state.json": len(state)}}))
    ten, twenty, thirty, forty = folder.whole_checkpoints()
    assert folder.onward(told.append, best=True) == forty and not told
    (twenty / "state.json").write_text("")
    assert folder.onward(told.append, best=False) == forty and not told
    assert folder.onward(told.append, best=True) == thirty
    (said,) = told
    assert str(forty) in said and f"its best checkpoint so far was {twenty}: it is not whole" in said
    ten.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=rf"\[best-missing\] .*{forty.name} its best .*{twenty.name}: it is not whole"):
        folder.onward(told.append, best=True)
    for path in (thirty, forty):
        (path / "state.json").write_text("")
    assert folder.onward(told.append, best=True) is None  # nothing sound is given up


def test_a_run_that_is_removed_while_runs_are_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "plan.yaml").touch()
    monkeypatch.setattr(folder, "runs_in", lambda: [tmp_path / "there", tmp_path / "gone"])
    assert folder.runs_here()[-1] == tmp_path / "there"
