"""A disk that is really full: the number in the message is what is missing, and what was saved before goes on."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import in_memory, leave
from test_checkpoint import SHORT, STEPS, assert_equal, at_step

from factory.config.refusal import UserError
from factory.execute import checkpoint
from factory.run.folder import RunFolder
from factory.steps.engine import Engine

RUN = ("method=lora", "method.rank=4", *SHORT, "evaluate.perplexity=false", "stage.save_steps=3")
DISK = 24 * 2**20  # bytes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with in_memory(tmp_path / "disk", DISK) as folder:
        yield folder


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_with_as_much_as_it_says_it_works(
    optimizer: str, disk: Path, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*RUN, f"stage.optimizer={optimizer}", "stage.weight_decay=0")
    whole = execute(*options, folder="whole")
    with monkeypatch.context() as patched:
        at_step(patched, 6, lambda run: leave(disk, 20_000))
        with pytest.raises(UserError, match=r"\[disk-full\]") as error:
            execute(*options, folder=str(disk / "run"))
    folder = RunFolder(disk / "run")
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000003"]
    needed, free = (int(number.replace(",", "")) for number in re.findall(r"\(([\d,]+) bytes\)", str(error.value)))
    assert free < needed

    saved = folder.checkpoint()
    short = needed - checkpoint._BESIDE - 2 * checkpoint._BLOCK  # and the number is no idle one
    with monkeypatch.context() as patched:
        at_step(patched, 3, lambda run: leave(disk, short - 4 * checkpoint._BLOCK))
        with pytest.raises(UserError, match=r"\[disk-full\]"):
            execute(*options, folder=str(disk / "run"), resume_from=saved)
    (disk / "filler").unlink()
    assert folder.checkpoint() == saved

    with monkeypatch.context() as patched:
        original = checkpoint.save

        def save(*values: Any, **more: Any) -> Any:
            if values[4]["step"] == 6:
                leave(disk, needed)
            try:
                return original(*values, **more)
            finally:
                (disk / "filler").unlink(missing_ok=True)

        patched.setattr(checkpoint, "save", save)
        done = execute(*options, folder=str(disk / "run"), resume_from=saved)
    assert_equal(done, whole)
    assert [path.name for path in folder.whole_checkpoints()] == ["step-000006", f"step-{STEPS:06d}"]


def test_what_is_counted_is_what_is_written(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the block, with the header of the tensors' file taken a little too long."""
    counted: list[int] = []
    original = Engine.write

    def write(engine: Engine, folder: Path) -> None:
        original(engine, folder)
        counted.append(engine.needed())

    monkeypatch.setattr(Engine, "write", write)
    execute(*RUN, "stage.max_steps=3")
    saved = RunFolder("run").checkpoint()
    assert saved is not None
    sizes = [(saved / name).stat().st_size for name in ("trained.safetensors", "optimizer.pt")]
    assert 0 <= counted[-1] - sum(-(-size // 4096) * 4096 for size in sizes) <= 4096


def test_other_errors_are_not_called_a_full_disk(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", fails)
    monkeypatch.setattr(checkpoint, "pickled_bytes", lambda value: 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        execute(*RUN)


def test_what_fails_while_the_model_is_saved_is_told_as_what_it_is(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of memory that was not enough a run tells what to do, as `memory.is_exhausted` finds it."""
    import torch

    from factory.plan import heads

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(heads, "save", fails)
    with pytest.raises(torch.OutOfMemoryError):
        execute(*RUN)


def test_every_random_state_comes_back(here: Path) -> None:
    import random

    import numpy as np
    import torch

    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    random.gauss(0, 1), np.random.normal()  # both keep a second number
    kept = checkpoint.random_state("cpu")

    def drawn() -> list[Any]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(3).tolist()]

    wanted = drawn()
    assert drawn() != wanted
    path = Path("random.pt")
    with path.open("wb") as file:
        torch.save(kept, file)
    checkpoint.set_random_state(torch.load(path, weights_only=True))
    assert drawn() == wanted
