"""Signals to a command at random moments: what is kept is whole, and what is printed goes on."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from breaking import SAME, STAGES, all_gone, answered, aside, ended, kept, loads, onward, report
from commands import Command, metrics, wait_for

from factory.run.folder import RunFolder
from factory.run.swept import SweepFolder

pytest_plugins = ["faulty"]
pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("hangup")]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
Start = Callable[..., Command]
GENERATED = ("evaluate.generation=true", "evaluate.max_new_tokens=8", "data.max_length=200")


def struck(command: Command, number: signal.Signals, after: float, where: Path) -> tuple[int, str]:
    """The command gets the signal after so many seconds, unless it has ended, and ends as the signal asks, with all
    that it has started.
    """
    wait_for(lambda: answers(command), 30)
    end = time.monotonic() + after
    while command.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    command.process.send_signal(number)
    code, text = ended(command)
    print(f"{number.name} after {after:.2f} s: {code}")
    # too early for its own answer the signal's default ends it; a moment too late it had done its work
    assert code in (0, -number, 128 + signal.SIGINT) and (number != signal.SIGKILL or code <= 0), text
    assert all_gone(where)
    return code, text


def answers(command: Command) -> bool:
    """Whether signals are its own to answer by now, and not those of a Python that starts."""
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def took(start: Callable[[], Command]) -> float:
    """Seconds of a command that nothing happens to."""
    begun = time.monotonic()
    code, text = ended(start())
    assert code == 0, text
    return time.monotonic() - begun


def over(folder: Path) -> bool:
    """Whether the run, or all jobs of the sweep."""
    return RunFolder(folder).status() == "finished" or SweepFolder(folder).is_done()


@dataclass(frozen=True)
class Breaker:
    """`where`: the working folder. `started` starts commands there, `chance` draws the moments."""

    where: Path
    started: Start
    chance: random.Random

    def broken_off(
        self, whole: str, start: Callable[[str], Command], later: Callable[[str, bool], Command], began: str
    ) -> Iterator[str]:
        """It runs whole; then each signal breaks it off in a folder of its own, and it goes on. Yields those folders.

        It goes on by the command that it printed; killed, or before there was the file `began` in its folder, by
        `later`, which is given the folder and whether that file is there.
        """
        seconds = took(lambda: start(whole))
        for number in SIGNALS:
            folder = f"{whole}-{number.name}"
            code, text = struck(start(folder), number, self.chance.uniform(0.2, seconds), self.where)
            kept(self.where / folder)
            loads(self.where / "out" / folder)
            assert number == signal.SIGKILL or not aside(self.where / folder)
            if code != 0 and not over(self.where / folder):  # else it was telling of it
                there = (self.where / folder / began).exists()
                assert ("To continue" in text) == (there and number != signal.SIGKILL), text
                code, text = ended(self.started(*onward(text)) if "To continue" in text else later(folder, there))
                assert code == 0, text
            assert not aside(self.where / folder)
            yield folder


@pytest.fixture
def breaker(where: Path, started: Start, chance: random.Random) -> Breaker:
    return Breaker(where, started, chance)


@pytest.mark.parametrize("stage", STAGES)
def test_train(stage: str, where: Path, train: Start, breaker: Breaker) -> None:
    def start(folder: str, *more: str) -> Command:
        return train(*STAGES[stage], *more, folder=folder)

    def later(folder: str, _there: bool) -> Command:
        return start(folder, "stage.resume=auto")

    whole = stage.replace(" ", "-")
    for folder in breaker.broken_off(whole, start, later, "plan.yaml"):
        assert metrics(where / folder) == metrics(where / whole)
        assert report(where / folder)["evaluate"] == report(where / whole)["evaluate"]


def test_evaluate(trained: str, where: Path, started: Start, breaker: Breaker) -> None:
    def evaluate(folder: str) -> Command:
        return started("evaluate", f"run={trained}", *GENERATED, f"hydra.run.dir={folder}")

    def later(folder: str, there: bool) -> Command:
        return started("resume", folder) if there else evaluate(folder)

    for folder in breaker.broken_off("measured", evaluate, later, "plan.yaml"):
        assert report(where / folder)["evaluate"] == report(where / "measured")["evaluate"]


def test_export(trained: str, where: Path, started: Start, breaker: Breaker) -> None:
    def export(name: str) -> Command:
        return started("export", f"run={trained}", f"export.dir=out/{name}", f"hydra.run.dir={name}")

    def later(folder: str, there: bool) -> Command:
        return started("resume", folder) if there else export(folder)

    for name in breaker.broken_off("exported", export, later, "plan.yaml"):
        out = where / "out"
        assert (out / name / "model.safetensors").read_bytes() == (out / "exported/model.safetensors").read_bytes()
        assert not aside(out)


def test_sweep(where: Path, tiny_model: Path, started: Start, breaker: Breaker) -> None:
    def sweep(folder: str) -> Command:
        return started("-m", *SAME, f"model.path={tiny_model}", "seed=1,2", f"hydra.sweep.dir={folder}")

    def later(folder: str, there: bool) -> Command:
        return started("-m", f"sweep.resume={folder}") if there else sweep(folder)

    for folder in breaker.broken_off("swept", sweep, later, "sweep.json"):
        for job in ("0", "1"):
            assert metrics(where / folder / job) == metrics(where / "swept" / job)


@pytest.mark.parametrize("number", SIGNALS)
def test_serve(number: signal.Signals, trained: str, where: Path, started: Start, chance: random.Random) -> None:
    import httpx

    from factory.board.children import free_port

    port = free_port("127.0.0.1")

    def serve() -> Command:
        return started("serve", f"run={trained}", f"serve.port={port}")

    struck(serve(), number, chance.uniform(0.2, 6), where)  # while it reads its weights, most often
    command = serve()
    answered(command, f"http://127.0.0.1:{port}")
    with httpx.stream(
        "POST",
        f"http://127.0.0.1:{port}/v1/completions",
        json={"model": trained, "prompt": "a", "max_tokens": 200, "stream": True},
        timeout=60,
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        command.process.send_signal(number)
        if number != signal.SIGKILL:
            assert [line for line in lines if line][-1] == "data: [DONE]"
        code, text = ended(command)
    assert code == (0 if number != signal.SIGKILL else -number), text
    assert all_gone(where)


@pytest.mark.parametrize("number", SIGNALS)
def test_board(number: signal.Signals, where: Path, started: Start, chance: random.Random) -> None:
    struck(started("board", "board.port=0"), number, chance.uniform(0.2, 8), where)
