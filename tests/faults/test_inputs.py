"""What a run reads changes or goes away while it runs: its rows, its model's folder, the hub."""

import shutil
from collections.abc import Callable
from pathlib import Path

import hub
import pytest
import tiny
from breaking import all_gone, ended, kept, report
from commands import Command, metrics, steps, wait_for

pytest_plugins = ["faulty"]
pytestmark = pytest.mark.faults
Start = Callable[..., Command]
LONG = ("stage.max_steps=200", "stage.save_steps=20")


def rows(file: Path, first: int, count: int = 100) -> None:
    lines = (tiny.DEMO / "messages.jsonl").read_text().splitlines(keepends=True)
    file.write_text("".join(lines[first : first + count]))


@pytest.mark.parametrize("harm", ["changed", "removed"])
@pytest.mark.parametrize("streams", [False, True])
def test_rows(streams: bool, harm: str, where: Path, train: Start, started: Start) -> None:
    """Prepared rows are kept; a stream is read to the end, and stops where its file is another."""
    name = f"{harm}-{streams}"
    file = where / f"{name}.jsonl"
    words = (*LONG, "data=file", f"data.path={file}")
    words += ("data.streaming=true", "data.shuffle_buffer=16") if streams else ()
    rows(file, 0)
    code, text = ended(train(*words, folder=f"{name}-whole"))
    assert code == 0, text
    command = train(*words, folder=name)
    wait_for(lambda: steps(where / name) >= 3, 120)
    file.unlink() if harm == "removed" else rows(file, 50)
    code, text = ended(command)
    assert all_gone(where)
    kept(where / name)
    if streams:
        assert code == 1 and "[stream-changed]" in text, text
        code, text = ended(started("resume", name))
        assert code == 2 and "[facts-changed]" in text, text
        rows(file, 0)
        code, text = ended(started("resume", name))
    assert code == 0, text
    assert metrics(where / name) == metrics(where / f"{name}-whole")


def test_the_models_folder(where: Path, tiny_model: Path, train: Start) -> None:
    """What was trained is saved; that it could not be read again beside its base is said."""
    shutil.copytree(tiny_model, where / "base")
    command = train(*LONG, f"model.path={where / 'base'}", "checks=full", folder="baseless")
    wait_for(lambda: steps(where / "baseless") >= 3, 120)
    shutil.rmtree(where / "base")
    code, text = ended(command)
    assert code == 1, text
    told = report(where / "baseless")
    assert told["status"] == "finished" and not told["checks"]["save_reload"]["passed"]
    assert "is gone" in told["checks"]["save_reload"]["detail"]
    kept(where / "baseless")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_hub(file: str, where: Path, tiny_model: Path, train: Start, started: Start, tmp_path: Path) -> None:
    """It dies in the middle of a file: told, and once it is there again the run goes on where its cache ends."""
    code, text = ended(train(folder=f"local-{file}"))
    assert code == 0, text
    with hub.serving(tiny_model) as served:
        served.dies_in = file
        environment = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hub")}
        folder = f"hub-{file}"
        words = (f"model.path={hub.ID}",)
        code, text = ended(train(*words, folder=folder, **environment))
        assert code == (2 if file == "config.json" else 1) and "[model-unreachable]" in text, text
        assert all_gone(where)
        served.dies_in, served.dead = None, False
        again = started("resume", folder, **environment) if code == 1 else train(*words, folder=folder, **environment)
        code, text = ended(again)
        assert code == 0, text
        assert metrics(where / folder) == metrics(where / f"local-{file}")
