"""Each target a little, as CI runs it; `make fuzz` runs more."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuzz import TARGETS, guard
from fuzz.guard import Broken, guarded
from fuzz.runner import run

# so many as take about two seconds each
CASES = {
    "adapters": 50,
    "catalogues": 150,
    "config_files": 50,
    "gguf": 300,
    "models": 40,
    "overrides": 15,
    "plans": 40,
    "requests": 1_000,
    "rows": 1_000,
    "templates": 60,
    "tokenizers": 100,
    "train_files": 150,
}


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_input_is_read_or_refused(target: str, tmp_path: Path) -> None:
    found = run(target, CASES[target], tmp_path)
    assert not found.faults, "\n".join(text for _, text in found.faults.values())
    assert sum(found.outcomes.values()) == CASES[target] and len(found.outcomes) > 1


def test_a_case_comes_again(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    once, again = (run("gguf", 20, tmp_path / name, first=7).outcomes for name in ("one", "other"))
    assert once == again


def test_what_was_found_until_it_is_stopped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def case(_: object) -> str:
        cases.append(1)
        if len(cases) == 5:
            raise KeyboardInterrupt
        return "read"

    cases: list[int] = []
    monkeypatch.setitem(sys.modules, "fuzz.stopped", SimpleNamespace(opened=lambda _: case))
    found = run("stopped", 9, tmp_path)
    assert str(found).startswith("3 cases: 3 read; ")  # the first of the five warmed up


def test_the_guard_sees_what_a_case_may_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swallowed() -> None:
        try:
            (tmp_path.parent / "outside").write_text("x")
        except BaseException:
            return

    def endless() -> None:
        while True:
            pass

    forbidden = [
        swallowed,
        lambda: os.system("true"),  # noqa: S605
        lambda: subprocess.run(["true"], check=False),
        lambda: pickle.loads(pickle.dumps(Path)),
        lambda: __import__("fuzz_canary"),
        lambda: time.sleep(5),
        endless,
    ]
    monkeypatch.setattr(guard, "SECONDS", 0.1)
    for each in forbidden:
        with pytest.raises(Broken), guarded(tmp_path):
            each()
    with guarded(tmp_path):
        (tmp_path / "inside").write_text("x")
    assert not (tmp_path.parent / "outside").exists()
