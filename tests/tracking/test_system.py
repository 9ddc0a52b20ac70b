"""The machine is looked at while a run goes on, under the names that MLflow's own page of them reads."""

import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import side_by_side

from factory.config.refusal import UserError
from factory.evaluation import rows
from factory.execute.context import append
from factory.plan.inspect import machine
from factory.ranks.outer import _shown
from factory.run.folder import RunFolder
from factory.run.screen import Screen
from factory.tracking.delivery import Growing
from factory.tracking.ledger import whole_lines
from factory.tracking.system import Sampler, looking

SAID = "0, 93, 1024, 81559, 310.5\n1, [N/A], 2048, 81559, [N/A]\n"


def test_a_line_every_so_often(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with Sampler(folder, 0.02):
        end = time.monotonic() + 10
        while len(lines := whole_lines(folder.system)) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(lines) >= 3
    assert all(lines[at]["time"] <= lines[at + 1]["time"] for at in range(len(lines) - 1))
    values = lines[-1]["values"]
    assert {f"system/{name}" for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes")} <= set(values)
    assert 0 < values["system/disk_usage_percentage"] <= 100 and values["system/system_memory_usage_megabytes"] > 1
    count = len(whole_lines(folder.system))
    time.sleep(0.1)
    assert len(whole_lines(folder.system)) == count  # the thread has ended


def test_nvidias_cards_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card does not tell is left out; a driver that fails stops nothing."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    done = subprocess.CompletedProcess([], 0, stdout=SAID)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    found = {name: value for name, value in looking()().items() if "gpu" in name}
    assert found == {
        "system/gpu_0_utilization_percentage": 93.0,
        "system/gpu_0_memory_usage_megabytes": 1024.0,
        "system/gpu_0_memory_total_megabytes": 81559.0,
        "system/gpu_0_power_usage_watts": 310.5,
        "system/gpu_1_memory_usage_megabytes": 2048.0,
        "system/gpu_1_memory_total_megabytes": 81559.0,
    }

    def fails(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(machine.subprocess, "run", fails)
    assert not [name for name in looking()() if "gpu" in name]


def test_a_full_disk_ends_the_looking(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "gone")
    with Sampler(folder, 0.01) as sampler:
        sampler._thread.join(5)
        assert not sampler._thread.is_alive()


@pytest.mark.parametrize("write", [lambda file, line: append(file, line), lambda file, line: rows.append(file, [line])])
def test_a_line_that_a_full_disk_cuts_short_is_told_and_passed_over(
    write: Callable[[Path, dict[str, Any]], None], tmp_path: Path
) -> None:
    folder, line = RunFolder(tmp_path), {"time": 1.0, "values": {"system/x": 1.0}}
    write(folder.system, line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (folder.system.stat().st_size + 9, before[1]))  # the system writes a part
    try:
        with pytest.raises(UserError):
            write(folder.system, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for _ in range(2):  # the disk has room again: the run was resumed
        write(folder.system, line)
    assert folder.system.read_bytes().count(b"\n") == 3
    assert whole_lines(folder.system) == Growing(folder.system).lines() == [line, line]


def test_under_an_outer_launcher_it_is_looked_at_too(tmp_path: Path) -> None:
    """There no parent follows the run: what was asked for was left out without a word."""
    folder = RunFolder(tmp_path)
    for asked in (False, True):
        tracking = side_by_side.tracking(None, system_metrics=asked, system_metrics_seconds=0.1)
        with _shown(side_by_side.plan().with_settings(tracking=tracking), folder, Screen()):
            end = time.monotonic() + (10 if asked else 0.2)
            while not whole_lines(folder.system) and time.monotonic() < end:
                time.sleep(0.01)
        assert bool(whole_lines(folder.system)) is asked
