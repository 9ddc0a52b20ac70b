"""The machine itself: its clock jumps, its memory ends, its database is locked or broken."""

import os
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import tiny
from breaking import MIB, all_gone, answered, aside, ended, report
from commands import Command, metrics

from factory.board.children import free_port

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
Start = Callable[..., Command]
DAY = 86_400  # seconds
CLOCK = """
import time
real, begun = time.time, time.monotonic()
time.time = lambda: real() + ({jump} if time.monotonic() - begun > 1.5 else 0)
"""


@pytest.mark.parametrize("days", [-400, 400])
def test_the_clock_jumps(days: int, where: Path, train: Start) -> None:
    """In every process, 1.5 seconds after its start: no number of the run is of it but the times of day."""
    folder = where / f"clock{days}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK.format(jump=days * DAY))
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    tracked = ("tracking=mlflow", f"tracking.uri=sqlite:///{where}/clock.db")
    code, text = ended(train(*tracked, folder=f"jumped{days}", PYTHONPATH=path))
    assert code == 0, text
    code, text = ended(train(folder=f"steady{days}"))
    assert metrics(where / f"jumped{days}") == metrics(where / f"steady{days}")
    told = report(where / f"jumped{days}")
    assert told["tracking"]["unsent"] == 0
    assert 0 < told["train"]["seconds"] < 600 and 0 < told["train"]["seconds_to_first_step"] < 600


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_memory_ends(verb: str, trained: str, where: Path, tiny_model: Path, train: Start, started: Start) -> None:
    """In an address space too small for what it loads."""
    words = {
        "evaluate": ("evaluate", f"run={trained}", "hydra.run.dir=small-evaluate"),
        "export": ("export", f"run={trained}", "export.dir=small", "hydra.run.dir=small-export"),
    }
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20, before[1]))  # which a child inherits
    try:
        command = train(folder="small-train") if verb == "train" else started(*words[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    code, text = ended(command)
    assert code == 1 and "[out-of-memory]" in text, text
    assert all_gone(where)
    assert not (where / "small").exists() and not aside(where)


def test_memory_ends_while_serving(where: Path, started: Start) -> None:
    """A prompt whose keys and values have no room is refused, and the server goes on; with room it is answered."""
    wide = {"hidden_size": 256, "num_hidden_layers": 16, "max_position_embeddings": 4096, "num_key_value_heads": 4}
    model, port = tiny.save(where / "wide", **wide), free_port("127.0.0.1")  # 128 MiB for 4,096 tokens
    words = ("hardware=cpu", "precision=fp32", "serve.name=wide", f"serve.port={port}")
    command = started("serve", f"model.path={model}", *words)
    address = f"http://127.0.0.1:{port}"
    answered(command, address)

    def ask(tokens: int) -> httpx.Response:
        asked = {"model": "wide", "prompt": [3 + at % 500 for at in range(tokens)], "max_tokens": 2}
        return httpx.post(f"{address}/v1/completions", json=asked, timeout=300)

    assert ask(8).status_code == 200  # its threads have begun
    server = psutil.Process(command.process.pid)
    free = server.rlimit(psutil.RLIMIT_AS)
    server.rlimit(psutil.RLIMIT_AS, (server.memory_info().vms + 24 * MIB, free[1]))
    refused = ask(4000)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "out_of_memory", refused.text
    assert ask(8).status_code == 200
    server.rlimit(psutil.RLIMIT_AS, free)
    assert ask(4000).status_code == 200
    command.process.terminate()
    assert command.process.wait(60) == 0, command.output.read_text()
    assert all_gone(where)


@pytest.mark.parametrize("harm", ["locked", "corrupt"])
def test_the_database(harm: str, where: Path, train: Start, started: Start) -> None:
    """The run ends as it would; what was not logged is counted, and sent later."""
    uri = f"sqlite:///{where}/{harm}.db"
    database = where / f"{harm}.db"
    tracked = ("tracking=mlflow", f"tracking.uri={uri}")
    code, text = ended(train(*tracked, folder=f"{harm}-before"))
    assert code == 0, text
    if harm == "locked":
        holder = sqlite3.connect(database, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        content = database.read_bytes()
        database.write_bytes(bytes(100) + content[100:])
    code, text = ended(train(*tracked, folder=harm))
    assert code == 0 and f"track {harm}" in text, text
    assert report(where / harm)["tracking"]["unsent"] > 0
    if harm == "locked":
        holder.execute("ROLLBACK")
        code, text = ended(started("track", harm))
    else:
        assert ended(started("track", harm))[0] == 1
        code, text = ended(started("track", harm, f"tracking.uri=sqlite:///{where}/other.db"))
    assert code == 0, text
    assert metrics(where / harm) == metrics(where / f"{harm}-before")
