"""SIGINT, SIGTERM and SIGKILL to a command at random moments: what is kept is whole, and what is printed goes on."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from breaking import SAME, STAGES, all_gone, aside, ended, kept, loads, onward, report
from commands import Command, metrics

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
Start = Callable[..., Command]
GENERATED = ("evaluate.generation=true", "evaluate.max_new_tokens=8", "data.max_length=200")


def struck(command: Command, number: signal.Signals, after: float) -> tuple[int, str]:
    """The command gets the signal after so many seconds, unless it has ended."""
    end = time.monotonic() + after
    while command.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    command.process.send_signal(number)
    return ended(command)


def took(start: Callable[[], Command]) -> float:
    """Seconds of a command that nothing happens to."""
    begun = time.monotonic()
    code, text = ended(start())
    assert code == 0, text
    return time.monotonic() - begun


def as_asked(number: signal.Signals, code: int) -> bool:
    """Whether the command ended as the signal asks; a moment too late it had done its work."""
    # where the interpreter was importing it may end itself by SIGINT, which a shell calls 130 too
    return code in (0, 128 + signal.SIGINT, -signal.SIGINT) if number != signal.SIGKILL else code in (0, -number)


@pytest.mark.parametrize("stage", STAGES)
def test_train(stage: str, where: Path, train: Start, started: Start, chance: random.Random) -> None:
    name = stage.replace(" ", "-")
    seconds = took(lambda: train(*STAGES[stage], folder=f"{name}-whole"))
    for number in SIGNALS:
        folder = f"{name}-{number.name}"
        after = chance.uniform(0.2, seconds)
        code, text = struck(train(*STAGES[stage], folder=folder), number, after)
        print(f"{folder}: after {after:.2f} of {seconds:.2f} s: {code}")
        assert as_asked(number, code), text
        assert all_gone(where)
        kept(where / folder)
        if code == 0:
            continue
        if number != signal.SIGKILL:
            assert not aside(where / folder)
        if "To continue" in text:
            code, text = ended(started(*onward(text)))
        elif "is finished" in text:  # it was telling of it
            code = 0
        else:  # killed, or too early to have a plan
            assert number == signal.SIGKILL or not (where / folder / "plan.yaml").exists(), text
            code, text = ended(train(*STAGES[stage], "stage.resume=auto", folder=folder))
        assert code == 0, text
        assert not aside(where / folder)
        assert metrics(where / folder) == metrics(where / f"{name}-whole")
        assert report(where / folder)["evaluate"] == report(where / f"{name}-whole")["evaluate"]


def test_evaluate(trained: str, where: Path, started: Start, chance: random.Random) -> None:
    def evaluate(folder: str) -> Command:
        return started("evaluate", f"run={trained}", *GENERATED, f"hydra.run.dir={folder}")

    seconds = took(lambda: evaluate("measured"))
    for number in SIGNALS:
        folder = f"measured-{number.name}"
        after = chance.uniform(0.2, seconds)
        code, text = struck(evaluate(folder), number, after)
        print(f"{folder}: after {after:.2f} of {seconds:.2f} s: {code}")
        assert as_asked(number, code), text
        assert all_gone(where)
        if code == 0:
            continue
        there = (where / folder / "plan.yaml").exists()
        assert ("To continue" in text) == (there and number != signal.SIGKILL), text
        again = (
            started(*onward(text))
            if "To continue" in text
            else started("resume", folder)
            if there
            else evaluate(folder)
        )
        code, text = ended(again)
        assert code == 0, text
        assert report(where / folder)["evaluate"] == report(where / "measured")["evaluate"]
        assert not aside(where / folder)


def test_export(trained: str, where: Path, started: Start, chance: random.Random) -> None:
    def export(name: str) -> Command:
        return started("export", f"run={trained}", f"export.dir=out/{name}", f"hydra.run.dir={name}")

    seconds = took(lambda: export("exported"))
    weights = (where / "out/exported/model.safetensors").read_bytes()
    for number in SIGNALS:
        name = f"exported-{number.name}"
        after = chance.uniform(0.2, seconds)
        code, text = struck(export(name), number, after)
        print(f"{name}: after {after:.2f} of {seconds:.2f} s: {code}")
        assert as_asked(number, code), text
        assert all_gone(where)
        loads(where / "out" / name)
        if code == 0:
            continue
        there = (where / name / "plan.yaml").exists()
        assert ("To continue" in text) == (there and number != signal.SIGKILL), text
        again = started(*onward(text)) if "To continue" in text else started("resume", name) if there else export(name)
        code, text = ended(again)
        assert code == 0, text
        assert (where / "out" / name / "model.safetensors").read_bytes() == weights
        assert not aside(where / name) and not aside(where / "out")


def test_sweep(where: Path, tiny_model: Path, started: Start, chance: random.Random) -> None:
    def sweep(folder: str) -> Command:
        return started("-m", *SAME, f"model.path={tiny_model}", "seed=1,2", f"hydra.sweep.dir={folder}")

    seconds = took(lambda: sweep("swept"))
    for number in SIGNALS:
        folder = f"swept-{number.name}"
        after = chance.uniform(0.2, seconds)
        code, text = struck(sweep(folder), number, after)
        print(f"{folder}: after {after:.2f} of {seconds:.2f} s: {code}")
        assert as_asked(number, code), text
        assert all_gone(where)
        if code == 0:
            continue
        there = (where / folder / "sweep.json").exists()
        if "To continue" in text:
            again = started(*onward(text))
        else:
            assert number == signal.SIGKILL or not there, text
            again = started("-m", f"sweep.resume={folder}") if there else sweep(folder)
        code, text = ended(again)
        assert code == 0, text
        for job in ("0", "1"):
            assert metrics(where / folder / job) == metrics(where / "swept" / job)
        assert not aside(where / folder)


@pytest.mark.parametrize("number", SIGNALS)
def test_serve(number: signal.Signals, trained: str, where: Path, started: Start, chance: random.Random) -> None:
    import httpx

    from factory.board.children import free_port

    port = free_port("127.0.0.1")

    def serve() -> Command:
        return started("serve", f"run={trained}", f"serve.port={port}")

    code, text = struck(serve(), number, chance.uniform(0.2, 6))  # while it reads its weights, most often
    assert as_asked(number, code), text
    assert all_gone(where)
    command = serve()
    answered(command, port)
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
    assert as_asked(number, code), text
    assert all_gone(where)


def answered(command: Command, port: int) -> None:
    import httpx

    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert command.process.poll() is None, command.output.read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(command.output.read_text())


@pytest.mark.parametrize("number", SIGNALS)
def test_board(number: signal.Signals, where: Path, started: Start, chance: random.Random) -> None:
    code, text = struck(started("board", "board.port=0"), number, chance.uniform(0.2, 8))
    assert as_asked(number, code), text
    assert all_gone(where)
