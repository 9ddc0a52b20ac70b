"""Threads spin where the cores were idle, and never on a machine that others use."""

import os

import psutil
import pytest

from factory.run.waiting import waiting


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 3}, raising=False)


def busy(monkeypatch: pytest.MonkeyPatch, *percent: float) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: list(percent))


def test_they_spin_on_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 10.0, 0.0, 100.0, 20.0)  # the third core is not ours
    assert int(waiting(3)["GOMP_SPINCOUNT"]) > 0
    assert "GOMP_SPINCOUNT" not in waiting(4)


def test_they_sleep_where_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 100.0, 0.0, 0.0, 0.0)
    assert waiting(3) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert "GOMP_SPINCOUNT" in waiting(2)


def test_one_thread_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, 0.0, 0.0, 0.0, 0.0)
    assert waiting(1) == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_was_set_by_hand_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP would take the count for more than the policy."""
    busy(monkeypatch, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setenv(name, "ACTIVE" if name == "OMP_WAIT_POLICY" else "7")
    assert "GOMP_SPINCOUNT" not in waiting(2)
