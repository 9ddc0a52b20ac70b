"""On a GPU: runs with the kernels of Liger and of Unsloth lose what runs with the model's own lose."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from factory.kernels import LIGER, LIGER_WITHOUT_ROPE, UNSLOTH

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
RUN = ("hardware=single_gpu", "precision=bf16", "stage.max_steps=6", "stage.warmup_ratio=0", "stage.logging_steps=1")
RUN = (*RUN, "stage.learning_rate=1e-3", "stage.save_steps=null", "evaluate.samples=0", "tracking=none")
UNSLOTHS = {
    "lora": ("method=lora",),
    "rslora": ("method=rslora",),
    "dora": ("method=dora",),
    "pissa": ("method=pissa",),
    "qlora": ("method=qlora",),
    "dpo": ("method=lora", "stage=dpo"),
    "packed": ("method=lora", "data.packing=true"),
    "recomputed": ("method=lora", "compute.activation_checkpointing=true"),
}


def losses(folder: Path, *overrides: str) -> list[float]:
    """The losses of a run in a process of its own, as Unsloth must be imported first."""
    command = (sys.executable, "-m", "factory", "train", *RUN, *overrides, f"hydra.run.dir={folder}")
    subprocess.run(command, check=True, cwd=folder.parent)
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "finished"
    assert all(check["passed"] for check in report["checks"].values()), report["checks"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its heads are 64 numbers wide, as the kernels want them."""
    return tiny.save(tmp_path_factory.mktemp("wider") / "llama", hidden_size=256)


@pytest.mark.parametrize("words", UNSLOTHS.values(), ids=list(UNSLOTHS))
def test_unsloth_trains_as_peft_does(words: tuple[str, ...], wider: Path, tmp_path: Path) -> None:
    pytest.importorskip("unsloth")
    asked = (*words, f"model.path={wider}", "method.dropout=0")
    plain = losses(tmp_path / "plain", *asked, "compute.kernels=none")
    assert losses(tmp_path / "unsloth", *asked, "compute.kernels=unsloth") == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("recomputed", ["false", "true", "selective"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_liger_trains_as_the_models_own_layers(method: str, recomputed: str, wider: Path, tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    asked = (f"method={method}", f"model.path={wider}", f"compute.activation_checkpointing={recomputed}")
    plain = losses(tmp_path / "plain", *asked, "compute.kernels=none")
    assert losses(tmp_path / "liger", *asked, "compute.kernels=auto") == pytest.approx(plain, rel=0.01)


def test_liger_has_a_public_function_for_each_model() -> None:
    transformers = pytest.importorskip("liger_kernel.transformers")
    from inspect import signature

    for kind in LIGER:
        taken = signature(getattr(transformers, f"apply_liger_kernel_to_{kind}")).parameters
        assert {"model", "rope", "rms_norm", "cross_entropy", "fused_linear_cross_entropy"} <= taken.keys(), kind
        assert taken["rope"].default == (kind not in LIGER_WITHOUT_ROPE), kind


def test_unsloth_loads_each_model_by_a_class_of_its_own() -> None:
    pytest.importorskip("unsloth")
    from importlib.metadata import files

    loader = next(file for file in files("unsloth") or () if str(file) == "unsloth/models/loader.py")
    text = Path(str(loader.locate())).read_text()
    assert all(f'model_type == "{kind}"' in text for kind in UNSLOTH)
