"""Checkpoints that are cut or changed on the disk, as whole commands have it (else: tests/execute/test_damaged.py)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from breaking import aside, ended, kept
from commands import Command, metrics
from harms import cut, flip

from factory.run.folder import RunFolder

pytest_plugins = ["faulty"]


@pytest.mark.faults
def test_it_is_said_on_the_screen(where: Path, train: Callable[..., Command], started: Callable[..., Command]) -> None:
    code, text = ended(train(folder="whole"))
    assert code == 0, text
    shutil.copytree(where / "whole", where / "hurt")
    run = RunFolder(where / "hurt")
    run.report.unlink(), shutil.rmtree(run.model)
    *_, six, eight = run.whole_checkpoints()
    flip(eight / "trained.safetensors"), cut(six / "optimizer.pt")
    code, text = ended(started("resume", "hurt"))
    assert code == 0, text
    assert "step-000008 is damaged (trained.safetensors is not what was written) and passed over" in text
    assert "step-000006 is damaged (it is not whole) and passed over" in text
    assert "Continuing from hurt/checkpoints/step-000004; 1 checkpoint of later steps will go once the next" in text
    assert "damaged" in run.log.read_text()
    assert metrics(where / "hurt") == metrics(where / "whole")
    kept(where / "hurt")
    assert not aside(where / "hurt")
