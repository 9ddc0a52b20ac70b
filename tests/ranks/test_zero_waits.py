"""How long DeepSpeed's ranks wait for each other, without DeepSpeed."""

import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from factory.ranks.world import PATIENCE
from factory.ranks.zero import Zero


@pytest.mark.parametrize("full", [False, True])
def test_others_are_patient_with_who_writes(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = SimpleNamespace(_clone_world_group=lambda: "deepspeed's")
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.utils", SimpleNamespace(groups=groups))
    most: dict[Any, timedelta] = {}
    monkeypatch.setattr(
        torch.distributed.distributed_c10d, "_set_pg_timeout", lambda time, group: most.update({group: time})
    )
    meanwhile: list[dict[Any, timedelta]] = []

    def save(*_: Any, **__: Any) -> None:
        meanwhile.append(dict(most))
        if full:
            raise OSError("no space left on device")

    zero: Any = Zero.__new__(Zero)
    zero._engine = SimpleNamespace(save_checkpoint=save)
    settings = SimpleNamespace(hardware=SimpleNamespace(rank_timeout=60))
    zero._run = SimpleNamespace(plan=SimpleNamespace(settings=settings))
    try:
        zero.write(Path("nowhere"))
    except OSError:
        assert full
    both = (None, "deepspeed's")  # None: torch's own
    assert meanwhile == [dict.fromkeys(both, PATIENCE)]
    assert most == dict.fromkeys(both, timedelta(seconds=60))
