"""Whoever reads what a command prints goes away at a random moment: it does its work, and its files have all of it."""

import os
import random
import time
from pathlib import Path

import pytest
from breaking import SAME, all_gone, ended, report
from commands import Command, metrics

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
LOST = "Standard output cannot be written (Broken pipe)"


def left(where: Path, after: float, *words: str) -> None:
    """It works to its end and says why it is silent, though the reader of its output leaves after so many seconds."""
    reader, writer = os.pipe()
    command = Command(where, *words, out=writer)
    os.close(writer)
    time.sleep(after)
    os.close(reader)
    code, text = ended(command)
    assert code == 0 and all_gone(where), text
    assert text.count(LOST) == 1


def once(folder: Path) -> None:
    """The log says it once, and the run finished."""
    log = (folder / "run.log").read_text()
    assert log.count(LOST) == 1 and "Traceback" not in log
    assert report(folder)["status"] == "finished"


@pytest.mark.parametrize(
    "words",
    [("evaluate", "run=trained"), ("export", "run=trained", "export.dir=out")],
    ids=lambda words: words[0],
)
def test_what_reads_a_run(words: tuple[str, ...], trained: str, where: Path, chance: random.Random) -> None:
    assert trained in words[1]
    folder = f"unread-{words[0]}"
    left(where, chance.uniform(0, 2), *words, f"hydra.run.dir={folder}")
    once(where / folder)


def test_train(trained: str, where: Path, tiny_model: Path, chance: random.Random) -> None:
    left(where, chance.uniform(0, 4), *SAME, f"model.path={tiny_model}", "hydra.run.dir=unread")
    once(where / "unread")
    assert metrics(where / "unread") == metrics(where / trained)


def test_sweep(where: Path, tiny_model: Path, chance: random.Random) -> None:
    words = ("-m", *SAME, f"model.path={tiny_model}", "seed=1,2", "hydra.sweep.dir=unread-swept")
    left(where, chance.uniform(0, 4), *words)
    for job in ("0", "1"):
        once(where / "unread-swept" / job)
    assert (where / "unread-swept" / "table.md").is_file()
