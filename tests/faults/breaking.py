"""What the tests of faults share: short runs of every stage, and what must be so whatever happened to them."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import commands
import httpx
import psutil
from commands import PATIENCE, Command, wait_for

from factory.run.folder import RunFolder, damage

SAME = (
    "tracking=none",
    "hardware=cpu",
    "precision=fp32",
    "method.rank=4",
    "evaluate.samples=0",
    "stage.logging_steps=1",
    "stage.learning_rate=1e-3",
    "stage.batch_size=2",
    "stage.gradient_accumulation_steps=2",
    "stage.max_steps=8",
    "stage.save_steps=2",
    "stage.save_total_limit=3",
    "data.max_samples=40",
)
SAMPLED = ("stage.reward=letters_scoring:letters", "stage.max_new_tokens=6", "stage.rollout_batch_size=8")
STAGES: dict[str, tuple[str, ...]] = {
    **commands.STAGES,
    "ppo": ("stage=ppo", *SAMPLED),
    "grpo": ("stage=grpo", "stage.group_size=4", *SAMPLED),
}
_ASIDE = re.compile(r"\..+\.\d+(\.old)?|.*\.(tmp|incomplete)")
MIB = 2**20


def ended(command: Command) -> tuple[int, str]:
    """How it ended, and what it printed, in one line: no traceback."""
    code, text = command.process.wait(PATIENCE), command.output.read_text()
    assert "Traceback" not in text and "Internal error" not in text, text
    return code, " ".join(text.split())


def answered(command: Command, address: str) -> None:
    """Waits until a server answers."""

    def healthy() -> bool:
        assert command.process.poll() is None, command.output.read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(f"{address}/health", timeout=5).status_code == 200
        return False

    wait_for(healthy, PATIENCE)


def onward(text: str) -> list[str]:
    """The words of the command that was printed last to go on with."""
    found = re.findall(r"To continue: \S*factory ((?:resume|-m) \S+)", text)
    assert found, text
    return found[-1].rstrip(".").split()


def all_gone(where: Path) -> bool:
    """No process of those that were started in the folder is left, whoever started it."""
    return bool(wait_for(lambda: not processes(where), 30))


def processes(where: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if _lives_in(each, where)]


def _lives_in(process: psutil.Process, where: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(where)
    except psutil.Error:
        return False


def aside(folder: Path) -> list[Path]:
    """What was written beside its place and left there."""
    return [path for path in folder.rglob("*") if _ASIDE.fullmatch(path.name)]


def kept(folder: Path) -> None:
    """Nothing under a final name is half: each checkpoint is as it was written, what is in model/ loads."""
    run = RunFolder(folder)
    for path in run.checkpoints.glob("step-*"):
        assert damage(path) is None, path
    for path in (run.report, run.tracking):
        assert not path.exists() or path.read_bytes().endswith(b"}\n") or path.read_bytes().endswith(b"}"), path
    loads(run.model)


def loads(folder: Path) -> None:
    """A model's folder that is there is whole."""
    from safetensors.torch import load_file

    if folder.exists():
        files = list(folder.glob("*.safetensors"))
        assert files and (folder / "tokenizer.json").is_file()
        assert all(load_file(file) for file in files)


def report(folder: Path) -> dict[str, Any]:
    import json

    return json.loads((folder / "report.json").read_text())
