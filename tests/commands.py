"""Whole commands as processes of their own: started, waited for, and cut short."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what goes on in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what is started here would ignore it too
SMALL = (  # a run on a tiny model, whose every step is logged
    "hardware=cpu",
    "precision=fp32",
    "evaluate.samples=0",
    "stage.logging_steps=1",
    "method.rank=4",
    "data.max_samples=40",
)
PATIENCE = 300  # seconds: of a machine that has much else to do


class Command:
    """A running `python -m factory …` in a folder, what it prints collected in a file."""

    def __init__(
        self, where: Path, *arguments: str, at: Path | None = None, out: int | None = None, **environment: str
    ):
        """`at` is the folder that it works in, and `out` its standard output's descriptor, where that is another."""
        self.output = where / f"screen-{time.monotonic_ns()}.txt"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "factory", *arguments],
                cwd=at or where,
                stdin=subprocess.DEVNULL,
                stdout=file if out is None else out,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def child(self) -> psutil.Process:
        return wait_for(lambda: next(iter(psutil.Process(self.process.pid).children()), None), PATIENCE)

    def ends(self, code: int) -> str:
        """What it printed; it ends with this exit code."""
        found = self.process.wait(PATIENCE)
        text = self.output.read_text()
        assert found == code, text
        assert "Traceback" not in text
        return " ".join(text.split())  # however the lines were broken


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing within {seconds} s")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What must repeat bit for bit."""
    return alike(json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1])


def alike(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics without what is another each time."""
    return [{name: value for name, value in line.items() if name not in _UNLIKE} for line in lines]


_UNLIKE = {"tokens_per_second", "memory", "seconds", "time"}
# the stages that sample nothing, in short
STAGES: dict[str, tuple[str, ...]] = {
    "sft": (),
    "sft streaming": ("data.streaming=true", "data.shuffle_buffer=16"),
    "pt": ("stage=pt", "data.max_length=64"),
    "rm": ("stage=rm",),
    "dpo": ("stage=dpo",),
    "kto": ("stage=kto",),
    "orpo": ("stage=orpo",),
}


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


PATCH = """
import os, sys
if sys.orig_argv[1:3] == ["-m", "factory.execute"] and os.environ.get("RANK", "0") == "{rank}":
    {code}
"""


def customized(where: Path, name: str, code: str, rank: int = 0) -> dict[str, str]:
    """Environment in which the child of this rank, and only it, runs this code at its start."""
    folder = where / name
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PATCH.format(code=code, rank=rank))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
