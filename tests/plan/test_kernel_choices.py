"""Which kernels `compute.kernels` takes, what the plan says of them, and what does not go with them."""

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest
from conftest import compiled, refusals

from factory.kernels import LIGER, LIGER_WITHOUT_ROPE
from factory.plan.facts import Gpu
from factory.plan.inspect import machine as look

HERE = look.look_at_machine().packages
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, compute_capability=9.0)
BOTH = {"gpus": (H100,), "packages": HERE | {"liger-kernel": "0.8.5", "unsloth": "2026.10.9"}}
LLAMA = ("model=llama3_8b", "hardware=h100_80gb")


def noted(*overrides: str) -> tuple[str, str]:
    """The kernels of a plan, and its note on them."""
    plan = compiled(*overrides, training=False)
    (note,) = (note for note in plan.notes if note.startswith("compute.kernels="))
    return plan.steps.patch.kernels, note


@pytest.mark.parametrize(
    ("has", "words", "kernels", "why"),
    [
        (BOTH, LLAMA, "liger", "fused RMSNorm"),
        (BOTH, ("model=gemma2_2b", "hardware=h100_80gb"), "liger", "fused RMSNorm"),
        (BOTH | {"packages": HERE}, LLAMA, "none", "the package liger-kernel is not installed"),
        (BOTH, (*LLAMA, "compute.compile=true"), "none", "torch.compile fuses by itself"),
        (BOTH, ("model=mixtral_8x7b", "hardware=h100_80gb"), "none", "the model is mixtral"),
        (BOTH, ("model=llama3_8b", "hardware=cpu"), "none", "Liger's are for a GPU"),
    ],
)
def test_auto_takes_liger_where_it_fits(
    has: dict[str, Any], words: tuple[str, ...], kernels: str, why: str, machine: Callable[..., None]
) -> None:
    machine(**has)
    found, note = noted(*words)
    assert found == kernels
    assert note.startswith(f"compute.kernels=auto: {kernels}, ") and why in note


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("method=full", "method.name=full"),
        ("method=freeze", "method.name=freeze"),
        ("method=galore method.rank=8", "method.name=galore"),
        ("method=loftq", "method.initialization=loftq"),
        ("precision=fp32", "precision.name=fp32"),
        ("precision=pure_bf16", "precision.name=pure_bf16"),
        ("compute.attention=sdpa", "compute.attention=sdpa"),
        ("compute.compile=true", "compute.compile=true"),
        ("compute.activation_checkpointing=selective", "compute.activation_checkpointing=selective"),
        ("model=gemma2_2b", "compute.kernels=unsloth"),
        ("evaluate.samples=2", "evaluate.samples=2"),
        ("evaluate.generation=true", "evaluate.generation=true"),
    ],
)
def test_what_unsloth_does_not_do_is_refused(words: str, setting: str, machine: Callable[..., None]) -> None:
    machine(**BOTH)
    found = refusals(*LLAMA, "compute.kernels=unsloth", *words.split(), training=False)
    assert setting in [refusal.setting for refusal in found if refusal.rule == "kernels"]


@pytest.mark.parametrize("method", ["lora", "qlora", "rslora", "dora", "lora_plus", "pissa"])
def test_unsloth_is_planned(method: str, machine: Callable[..., None]) -> None:
    machine(**BOTH)
    kernels, note = noted(*LLAMA, f"method={method}", "compute.kernels=unsloth")
    assert kernels == "unsloth" and "the estimate" in note
    plain = compiled(*LLAMA, f"method={method}", "compute.kernels=none", training=False)
    fused = compiled(*LLAMA, f"method={method}", "compute.kernels=unsloth", training=False)
    assert fused.estimate.memory.activations < plain.estimate.memory.activations
    assert fused.steps.evaluate.samples == 0


def test_unsloth_is_imported_before_what_it_patches() -> None:
    program = """if True:
        import sys, factory.execute.__main__, factory.execute.context, factory.execute.report, factory.plan.plan
        import factory.ranks.world, factory.config.refusal, factory.steps.unsloth
        assert not {"transformers", "peft", "trl", "unsloth"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_table_is_the_librarys() -> None:
    """By the text of an installed distribution: its import needs Triton."""
    try:
        files = metadata.files("liger-kernel") or []
    except metadata.PackageNotFoundError:
        pytest.skip("liger-kernel is not installed")
    source = next(file for file in files if file.match("liger_kernel/transformers/monkey_patch.py")).read_text()
    functions = {each.name: each for each in ast.parse(source).body if isinstance(each, ast.FunctionDef)}
    for kind in LIGER:
        taken = functions[f"apply_liger_kernel_to_{kind}"].args
        rope = dict(zip((each.arg for each in taken.args), map(ast.unparse, taken.defaults), strict=True))["rope"]
        assert rope == str(kind not in LIGER_WITHOUT_ROPE), kind
