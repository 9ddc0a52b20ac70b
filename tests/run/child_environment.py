"""What a training process would be given, had it been started."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from factory.plan.plan import Plan
from factory.run import launch
from factory.run.folder import RunFolder


class _Caught(Exception):
    """In place of a child."""


def environment_of(plan: Plan, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    def started(*_: Any, env: dict[str, str], **__: Any) -> None:
        raise _Caught(env)

    monkeypatch.setattr(subprocess, "Popen", started)
    folder = RunFolder(place)
    with (
        pytest.raises(_Caught) as caught,
        folder.log.open("wb") as lock,
        launch._started(plan, folder, None, lock.fileno()),
    ):
        pass
    return caught.value.args[0]
