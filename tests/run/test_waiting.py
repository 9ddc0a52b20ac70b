"""Threads spin where the cores were idle, and never on a machine that others use."""

import os
from pathlib import Path

import psutil
import pytest
from child_environment import environment_of
from conftest import compiled

from factory.run.waiting import waiting

SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 3}, raising=False)


def busy(monkeypatch: pytest.MonkeyPatch, *percent: float) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: list(percent))


def test_they_spin_on_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 10.0, 0.0, 100.0, 20.0)  # the third core is not ours
    assert waiting(3) == {}
    assert waiting(4) == SLEEPING


def test_they_sleep_where_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 100.0, 0.0, 0.0, 0.0)
    assert waiting(3) == SLEEPING
    assert waiting(2) == {}


def test_one_thread_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 0.0, 0.0, 0.0, 0.0)
    assert waiting(1) == SLEEPING


@pytest.mark.parametrize("by_hand", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {}], ids=str)
@pytest.mark.parametrize("used", [0.0, 100.0], ids=["idle", "busy"])
def test_what_is_set_by_hand_is_what_the_child_is_given(
    by_hand: dict[str, str], used: float, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", "hardware.threads=2")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in by_hand.items():
        monkeypatch.setenv(name, value)
    busy(monkeypatch, *[used] * 4)
    given = environment_of(plan, tmp_path, monkeypatch).get("OMP_WAIT_POLICY")
    assert given == by_hand.get("OMP_WAIT_POLICY", "PASSIVE" if used else None)
