"""A GPU's memory segments grow by default, and a user's own settings of torch's allocator stay."""

import os
from pathlib import Path

import pytest
from child_environment import environment_of
from conftest import compiled

from factory.plan.plan import Plan
from factory.ranks.outer import run_as_rank
from factory.ranks.world import World
from factory.run.folder import RunFolder

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)


def plan(hardware: str) -> Plan:
    return compiled("model=llama3_8b", "tracking=none", *hardware.split(), training=False)


def set_in(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in NAMES if name in environment}


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ("hardware=a100_40gb", EXPANDABLE),
        ("hardware=a100_40gb hardware.num_processes=2 hardware.strategy=ddp", EXPANDABLE),
        ("hardware=cpu", {}),
    ],
)
def test_the_child_of_a_gpu_run_has_expandable_segments(
    hardware: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set_in(environment_of(plan(hardware), tmp_path, monkeypatch)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_set_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:128")
    environment = environment_of(plan("hardware=a100_40gb"), tmp_path, monkeypatch)
    assert set_in(environment) == {name: "max_split_size_mb:128"}


@pytest.mark.parametrize("own", [None, "max_split_size_mb:128"])
def test_a_rank_of_an_outer_launcher_sets_it_before_it_joins(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is not None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)

    class Joined(Exception):
        pass

    def join(*_: object) -> None:
        raise Joined

    monkeypatch.setattr(World, "join", join)
    with pytest.raises(Joined):
        run_as_rank(plan("hardware=a100_40gb"), RunFolder(tmp_path), World())
    assert set_in(dict(os.environ)) == ({"PYTORCH_CUDA_ALLOC_CONF": own} if own else EXPANDABLE)
