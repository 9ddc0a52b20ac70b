"""More than one process: two that want one folder, and a rank that hangs."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from breaking import SAME, all_gone, ended, kept, loads, onward
from commands import Command, metrics, steps, wait_for

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
Start = Callable[..., Command]


@pytest.mark.parametrize("verb", ["evaluate", "export", "sweep"])
def test_two_in_one_folder(verb: str, trained: str, where: Path, tiny_model: Path, started: Start) -> None:
    """The second is refused at once and touches nothing; of exports to one place the first to end has it."""
    words = {
        "evaluate": ("evaluate", f"run={trained}", "hydra.run.dir=both"),
        "export": ("export", f"run={trained}", "export.dir=both-out", "hydra.run.dir=both-export"),
        "sweep": ("-m", *SAME, f"model.path={tiny_model}", "seed=1,2", "hydra.sweep.dir=both-swept"),
    }[verb]
    folder = where / {"evaluate": "both", "export": "both-export", "sweep": "both-swept"}[verb]
    first = started(*words)
    wait_for(lambda: (folder / ("sweep.json" if verb == "sweep" else "events.jsonl")).exists(), 120)
    code, text = ended(started(*words))
    # the last where the first has ended by now
    refused = ("[folder-in-use]", "[folder-taken]", "[sweep-taken]", "[export-dir]")
    assert code == 2 and any(rule in text for rule in refused), text
    code, text = ended(first)
    assert code == 0, text


def test_two_exports_to_one_place(trained: str, where: Path, started: Start) -> None:
    words = ("export", f"run={trained}", "export.dir=shared")
    both = [started(*words, f"hydra.run.dir=shared{number}") for number in (1, 2)]
    codes = sorted(ended(each)[0] for each in both)
    assert codes in ([0, 1], [0, 2])
    loads(where / "shared")


def hung(where: Path, command: Command, folder: str, rank: int) -> None:
    """One of the ranks stops where it is, while training."""
    wait_for(lambda: steps(where / folder) >= 5, 90)
    below = psutil.Process(command.process.pid).children(recursive=True)
    os.kill(next(each.pid for each in below if each.environ().get("RANK") == str(rank)), signal.SIGSTOP)


RANKS = ("hardware.num_processes=2", "stage.max_steps=300")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_rank_that_hangs(strategy: str, where: Path, train: Start, started: Start, chance: random.Random) -> None:
    """The others wait for it as long as is asked, and it is told by its number; then the run goes on."""
    rank, folder = chance.randrange(2), f"hung-{strategy}"
    command = train(*RANKS, f"hardware.strategy={strategy}", "hardware.rank_timeout=15", folder=folder)
    hung(where, command, folder, rank)
    begun = time.monotonic()
    code, text = ended(command)
    assert code == 1 and f"[rank-hung] hardware.rank_timeout=15: rank {rank} of 2 hung." in text, text
    assert time.monotonic() - begun < 15 + GRACE
    assert all_gone(where)
    kept(where / folder)
    code, text = ended(started(*onward(text)))
    assert code == 0, text
    assert [line["step"] for line in metrics(where / folder)] == list(range(1, 301))


GRACE = 60  # seconds: 30 of them are torch's, until it kills a rank that does not end


def test_a_rank_that_hangs_is_interrupted(where: Path, train: Start, started: Start) -> None:
    """Ctrl-C waits for it, a second one ends all of it; then it goes on."""
    command = train(*RANKS, "hardware.strategy=ddp", folder="hung")
    hung(where, command, "hung", 1)
    for _ in range(2):
        time.sleep(1)
        command.process.send_signal(signal.SIGINT)
    code, text = ended(command)
    assert code == 130, text
    assert all_gone(where)
    kept(where / "hung")
    code, text = ended(started(*onward(text)))
    assert code == 0, text
    assert [line["step"] for line in metrics(where / "hung")] == list(range(1, 301))
