"""Fixtures of faults. Moments and sizes are drawn from a seed that a failure prints: FAULTS_SEED=N repeats it."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from breaking import SAME
from commands import Command
from rolling import LETTERS


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed = os.environ.get("FAULTS_SEED") or str(time.time_ns() % 10**6)
    print(f"FAULTS_SEED={seed}")
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a module's commands."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "letters_scoring.py").write_text(LETTERS)
    return folder


@pytest.fixture(scope="module")
def trained(where: Path, tiny_model: Path) -> str:
    """The folder of a finished run."""
    Command(where, *SAME, f"model.path={tiny_model}", "hydra.run.dir=trained").ends(0)
    return "trained"


@pytest.fixture
def train(started: Callable[..., Command], tiny_model: Path) -> Callable[..., Command]:
    """Starts a short run of the tiny model in a folder."""

    def train(*words: str, folder: str, **environment: str) -> Command:
        streams = "data.streaming=true" in words  # whose rows are not known before they are drawn
        same = [text for text in SAME if not (streams and text.startswith("data.max_samples"))]
        return started(*same, f"model.path={tiny_model}", *words, f"hydra.run.dir={folder}", **environment)

    return train
