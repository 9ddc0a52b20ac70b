"""A disk that is full at any write, and a folder that nobody can write into."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import mounts
import pytest
from breaking import MIB, SAME, all_gone, aside, ended, kept, loads, report
from commands import Command, metrics, wait_for

from factory.run.folder import RunFolder

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
Start = Callable[..., Command]
TELLS = ("[disk-full]", "[cannot-write]", "[data-cache]")


def told(text: str) -> bool:
    return any(rule in text for rule in TELLS)


def test_train(where: Path, train: Start, started: Start, chance: random.Random) -> None:
    """Of so many bytes that it fills at a write that nobody chose, the last of them in the model and the report."""
    code, text = ended(train(folder="whole"))
    assert code == 0, text
    most = sum(path.stat().st_size for path in (where / "whole").rglob("*") if path.is_file())
    for number, share in enumerate((0.01, 0.04, chance.uniform(0.05, 0.9), 0.95, 1.05)):
        with mounts.in_memory(where / f"disk{number}", int(share * most)) as disk:
            folder = f"disk{number}/run"
            code, text = ended(train(folder=folder))
            print(f"{int(share * most):,} of {most:,} bytes: {code} {text[-300:]}")
            assert all_gone(where)
            if code == 0:
                continue
            assert told(text), text
            kept(disk / "run")
            assert not aside(disk)
            mounts.resize(disk, 10 * most)
            there = RunFolder(disk / "run").plan.exists()
            code, text = ended(started("resume", folder) if there else train(folder=folder))
            assert code == 0, text
            assert metrics(disk / "run") == metrics(where / "whole")
            assert report(disk / "run")["evaluate"] == report(where / "whole")["evaluate"]


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("left", [0, 5_000, 15_000, 40_000])
def test_evaluate(left: int, where: Path, started: Start) -> None:
    with mounts.in_memory(where / f"measured{left}", MIB) as disk:
        mounts.leave(disk, left)
        folder = f"measured{left}/run"
        words = ("evaluate", "run=trained", *GENERATED, f"hydra.run.dir={folder}")
        code, text = ended(started(*words))
        assert code in (1, 2) if left < 10_000 else True, text
        if code == 0:
            return
        assert told(text) and not aside(disk), text
        (disk / "filler").unlink()
        code, text = ended(started("resume", folder) if (disk / "run/plan.yaml").exists() else started(*words))
        assert code == 0, text
        assert not aside(disk)


GENERATED = ("evaluate.generation=true", "evaluate.max_new_tokens=8", "data.max_length=200")


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("left", [0, 30_000, 100_000])
def test_export(left: int, where: Path, started: Start) -> None:
    """There was room enough when it was planned."""
    with mounts.in_memory(where / f"exports{left}", 64 * MIB) as disk:
        name, events = f"exports{left}", where / f"ex{left}" / "events.jsonl"
        command = started("export", "run=trained", f"export.dir={name}/x", f"hydra.run.dir=ex{left}")
        wait_for(lambda: events.exists() and '"load"' in events.read_text(), 120)
        mounts.leave(disk, left)
        code, text = ended(command)
        assert code == 1 and told(text), text
        assert not (disk / "x").exists() and not aside(disk)
        (disk / "filler").unlink()
        code, text = ended(started("resume", f"ex{left}"))
        assert code == 0, text
        loads(disk / "x")


def test_sweep(where: Path, tiny_model: Path, started: Start, chance: random.Random) -> None:
    def sweep(folder: str) -> tuple[str, ...]:
        return ("-m", *SAME, f"model.path={tiny_model}", "seed=1,2", f"hydra.sweep.dir={folder}")

    code, text = ended(started(*sweep("swept")))
    assert code == 0, text
    most = sum(path.stat().st_size for path in (where / "swept").rglob("*") if path.is_file())
    for number, share in enumerate((0.02, 0.5, chance.uniform(0.1, 0.9), 1.0)):
        with mounts.in_memory(where / f"sweep{number}", int(share * most)) as disk:
            folder = f"sweep{number}/s"
            code, text = ended(started(*sweep(folder)))
            print(f"{int(share * most):,} of {most:,} bytes: {code} {text[-300:]}")
            if code == 0:
                continue
            assert told(text), text
            mounts.resize(disk, 10 * most)
            there = (disk / "s/sweep.json").exists()
            code, text = ended(started("-m", f"sweep.resume={folder}") if there else started(*sweep(folder)))
            assert code == 0, text
            for job in ("0", "1"):
                assert metrics(disk / "s" / job) == metrics(where / "swept" / job)
            assert not aside(disk)


def test_the_cache(where: Path, train: Start, started: Start) -> None:
    """Where prepared rows are kept."""
    with mounts.in_memory(where / "cached", MIB) as disk:
        mounts.leave(disk, 0)
        code, text = ended(train(folder="uncached", FACTORY_CACHE=str(disk / "cache")))
        assert code == 1 and "[data-cache]" in text, text
        (disk / "filler").unlink()
        code, text = ended(started("resume", "uncached", FACTORY_CACHE=str(disk / "cache")))
        assert code == 0, text


@pytest.mark.parametrize("verb", ["train", "evaluate", "export", "sweep", "board", "serve"])
def test_nobody_can_write(verb: str, trained: str, where: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Refused before anything is loaded; a server needs no folder."""
    words = {
        "train": (*SAME, f"model.path={tiny_model}"),
        "evaluate": ("evaluate", f"run={where / trained}"),
        "export": ("export", f"run={where / trained}", "export.dir=x"),
        "sweep": ("-m", *SAME, f"model.path={tiny_model}", "seed=1,2"),
        "board": ("board", "board.port=0"),
        "serve": ("serve", f"run={where / trained}", "serve.port=0"),
    }[verb]
    folder = tmp_path / "fixed"
    folder.mkdir()
    with mounts.read_only(folder):
        command = Command(tmp_path, *words, at=folder)
        if verb == "serve":
            wait_for(lambda: "Serving" in command.output.read_text(), 120)
            command.process.terminate()
        code, text = ended(command)
        assert code == (0 if verb == "serve" else 2), text
        assert verb == "serve" or "[cannot-write]" in text or "[export-unwritable]" in text
        assert not list(folder.iterdir())
    shutil.rmtree(folder)
