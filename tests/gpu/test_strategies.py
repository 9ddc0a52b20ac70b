"""On GPUs: each way of sharing a model trains as one process does, in bf16, whatever it splits or offloads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from factory.plan.inspect.machine import installed_version

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
RUN = ("hardware=single_gpu", "precision=bf16", "stage.max_steps=6", "stage.warmup_ratio=0", "stage.logging_steps=1")
RUN = (*RUN, "stage.save_steps=null", "evaluate.samples=0", "tracking=none", "stage.batch_size=2")
ZERO = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("wider") / "llama", hidden_size=256)


def losses(folder: Path, *overrides: str) -> list[float]:
    command = (sys.executable, "-m", "factory", "train", *RUN, *overrides, f"hydra.run.dir={folder}")
    subprocess.run(command, check=True, cwd=folder.parent)  # 1 where a check is red
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def asked(strategy: str) -> tuple[str, ...]:
    if strategy in ZERO and installed_version("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    return (f"hardware.strategy={strategy}",)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_cards_train_as_one(method: str, strategy: str, wider: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    shared = (f"method={method}", f"model.path={wider}")
    one = losses(tmp_path / "one", *shared, "stage.gradient_accumulation_steps=2")
    two = ("hardware.num_processes=2", "stage.gradient_accumulation_steps=1", *asked(strategy))
    assert losses(tmp_path / "two", *shared, *two) == pytest.approx(one, rel=0.01)


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_what_is_offloaded_trains_as_on_the_card(strategy: str, wider: Path, tmp_path: Path) -> None:
    """In one process: what is split lies in pinned memory of the host, and DeepSpeedCPUAdam or torch steps it."""
    shared = ("method=full", f"model.path={wider}")
    offloaded = losses(tmp_path / "offloaded", *shared, "hardware.offload=true", *asked(strategy))
    assert offloaded == pytest.approx(losses(tmp_path / "card", *shared), rel=0.01)
