"""Who executes plans imports what they need and no more, asked of `sys.modules` in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.plan import to_yaml

ASKED = ("bitsandbytes", "scipy", "pandas", "sklearn", "datasets", "mlflow", "trl", "torch._inductor.compile_fx")
ASKED += ("torchvision", "av", "sympy.core", "torch._dynamo.symbolic_convert", "torch.distributed.tensor._api")
SCRIPT = """
import gc, json, sys
from pathlib import Path
from factory.execute import __main__, lean
from factory.ranks.world import from_environment
from factory.run.folder import RunFolder

usual = gc.get_threshold()
code = __main__.execute(RunFolder("run"), None, from_environment(), printed="run.log")
found = [name for name in sys.argv[1:] if sys.modules.get(name) is not None]
import bitsandbytes, scipy.optimize, torchvision  # nothing stays hidden
print(json.dumps([code, found, gc.get_threshold() == usual]))
"""


CALL = """
import importlib, io, json, sys
from factory import cli

words, first, asked = sys.argv[1].split(), sys.argv[2], sys.argv[3:]
if first:
    importlib.import_module(first)
sys.stdin = io.StringIO("Hi")
code = cli.main(words)
found = [name for name in asked if sys.modules.get(name) is not None]
import scipy.optimize, torchvision  # nothing stays hidden
print("\\n" + json.dumps([code, found]))
"""


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ("method=lora", []),
        ("method=full precision=fp32", []),
        ("method=qlora", ["bitsandbytes"]),
        ("method=full stage.optimizer=adamw_8bit", ["bitsandbytes"]),
        ("method=full stage.optimizer=adafactor", []),
        ("method=lora stage.optimizer=adafactor", []),
    ],
)
def test_a_child_imports_what_its_plan_needs(overrides: str, needed: list[str], tiny_model: Path, here: Path) -> None:
    short = ("stage.max_steps=1", "stage.batch_size=2", "data.max_samples=12", "evaluate.samples=0", "tracking=none")
    plan = compiled(f"model.path={tiny_model}", "hardware=cpu", *short, *overrides.split())
    (here / "run").mkdir()
    (here / "run" / "plan.yaml").write_text(to_yaml(plan))
    done = subprocess.run([sys.executable, "-c", SCRIPT, *ASKED], capture_output=True, text=True, timeout=300)
    code, found, as_usual = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert found == needed
    assert as_usual


@pytest.mark.slow
@pytest.mark.slow
def test_quantizers_that_are_there_and_not_used_are_left(
    tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("torchao", "0.18.0"), ("hqq", "0.2.8")):
        (here / name).mkdir()
        (here / name / "__init__.py").write_text(f"raise RuntimeError('{name} is imported')")
        (here / f"{name}-{version}.dist-info").mkdir()
        (here / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    found = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), *([found] if found else [])]))
    monkeypatch.syspath_prepend(here)  # a plan has their versions
    assert talked(f"model.path={tiny_model}", "torchao", "hqq") == []
    test_a_child_imports_what_its_plan_needs("method=lora", [], tiny_model, here)


def talked(words: str, *asked: str, first: str = "") -> list[str]:
    """Which of these modules a process holds in the end that answered one message."""
    short = "hardware=cpu precision=fp32 generation.temperature=0 generation.max_tokens=2"
    return called(f"chat {words} {short}", *asked, first=first)


def called(words: str, *asked: str, first: str = "") -> list[str]:
    """Which of these modules a process holds in the end that was one command."""
    line = [sys.executable, "-c", CALL, words, first, *asked]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return found


@pytest.mark.parametrize(("overrides", "needed"), [("method.quantization.bits=4", ["bitsandbytes"]), ("", [])])
def test_who_talks_imports_what_its_model_needs(
    overrides: str, needed: list[str], tiny_model: Path, here: Path
) -> None:
    assert talked(f"model.path={tiny_model} {overrides}", *ASKED) == needed


def test_a_preview_imports_no_model(tiny_model: Path, here: Path) -> None:
    assert called(f"preview model.path={tiny_model} data.max_samples=4 preview.rows=1", "peft", *ASKED) == []


@pytest.mark.slow
def test_two_models_have_what_either_needs(execute: Callable[..., Any]) -> None:
    short = ("stage.max_steps=1", "data.max_samples=12")
    execute("method=qlora", *short, folder="four")
    execute("method=lora", *short, folder="whole")
    asked = (*ASKED, "peft.tuners.lora.bnb")
    assert talked("run=whole compare=[base,run]", *asked) == []
    assert talked("run=whole compare=[run,four]", *asked) == ["bitsandbytes", "peft.tuners.lora.bnb"]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["torch", "transformers", "transformers.modeling_utils", "peft"])
def test_a_process_whose_user_imported_them_before_talks_too(first: str, tiny_model: Path, here: Path) -> None:
    assert talked(f"model.path={tiny_model}", "sympy.core", first=first) == ([] if first == "torch" else ["sympy.core"])
