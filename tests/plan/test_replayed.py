"""What a plan asks that the machine which executes it lacks: refused as `train` would, though `plan` only warned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.plan.facts import Gpu, Machine
from factory.plan.inspect.machine import look_at_machine
from factory.plan.plan import Plan, to_yaml
from factory.plan.replayed import lacking
from factory.ranks.world import VARIABLES

CARD = Gpu(name="NVIDIA H100", memory_bytes=80 * 2**30, compute_capability=9.0)
EVERY = dict.fromkeys(("flash-attn", "liger-kernel", "deepspeed", "bitsandbytes", "hqq", "lm-eval", "av"), "1")
GPU = ("hardware=single_gpu", "precision=bf16", "tracking=none")


def there(cards: int = 8, without: str = "", **changes: Any) -> Machine:
    """A machine with so many cards, and with every package but one."""
    packages = {name: version for name, version in EVERY.items() if name != without}
    return replace(look_at_machine(), gpus=(CARD,) * cards, packages=packages, **changes)


def planned(model: Path, *overrides: str) -> Plan:
    return compiled(*GPU, f"model.path={model}", *overrides, training=False)


@pytest.mark.parametrize(
    ("overrides", "without", "rule", "setting"),
    [
        ("compute.attention=flash_attention_2", "flash-attn", "package-missing", "compute.attention=flash_attention_2"),
        ("compute.kernels=liger", "liger-kernel", "package-missing", "compute.kernels=liger"),
        ("stage.optimizer=adamw_8bit", "bitsandbytes", "package-missing", "stage.optimizer=adamw_8bit"),
        ("method=qlora", "bitsandbytes", "package-missing", "method.quantization.method=bitsandbytes"),
        (
            "hardware.num_processes=8 hardware.strategy=zero2",
            "deepspeed",
            "package-missing",
            "hardware.strategy=zero2",
        ),
        ("evaluate.harness=[arc_easy]", "lm-eval", "package-missing", "evaluate.harness=[arc_easy]"),
    ],
)
def test_a_package(overrides: str, without: str, rule: str, setting: str, tiny_model: Path) -> None:
    made = planned(tiny_model, *overrides.split())
    assert lacking(made, there(), launched=False) == []
    (found,) = lacking(made, there(without=without), launched=False)
    assert (found.rule, found.setting) == (rule, setting) and found.machine


def test_the_package_that_reads_a_checkpoint(tiny_model: Path) -> None:
    made = planned(tiny_model)
    config = {**made.steps.load.config, "quantization_config": {"quant_method": "bitsandbytes"}}
    made = replace(made, steps=replace(made.steps, load=replace(made.steps.load, config=config)))
    assert lacking(made, there(), launched=False) == []
    assert [found.rule for found in lacking(made, there(without="bitsandbytes"), launched=False)] == ["package-missing"]


def test_cards(tiny_model: Path) -> None:
    """Of a node. A launcher may show each rank its own alone."""
    made = planned(tiny_model, "hardware.num_processes=8", "hardware.strategy=ddp")
    assert [found.rule for found in lacking(made, there(1), launched=False)] == ["ranks-beyond-gpus"]
    assert lacking(made, there(1), launched=True) == [] == lacking(made, there(8), launched=False)
    halved = planned(tiny_model, "hardware.num_processes=8", "hardware.strategy=ddp", "hardware.num_nodes=2")
    assert lacking(halved, there(4), launched=False) == []


def test_memory_is_what_is_free_here(tiny_model: Path) -> None:
    made = planned(tiny_model, "method=full")
    memory = made.estimate.memory
    exact = max(memory.weights + memory.gradients + memory.optimizer, memory.instants.get("reading", 0))

    def on(free: int) -> list[str]:
        machine = replace(there(), gpus=(replace(CARD, free_bytes=free),))
        return [found.rule for found in lacking(made, machine, launched=True)]

    assert on(exact) == [] and on(exact - 1) == ["memory"]


@pytest.mark.parametrize("launched", [False, True])
def test_it_ends_the_command_before_anything_is_written(
    launched: bool, tiny_model: Path, here: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "plan.yaml").write_text(to_yaml(compiled("tracking=none", "hardware=cpu", f"model.path={tiny_model}")))
    machine = replace(look_at_machine(), available_bytes=1)
    monkeypatch.setattr("factory.verbs.train.look_at_machine", lambda: machine)
    if launched:
        for name, value in zip(VARIABLES, ("0", "1", "0", "localhost", "29500"), strict=True):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("factory.verbs.train.run_as_rank", lambda *_: 0)
    monkeypatch.setattr("factory.verbs.train._launch", lambda *_: 0)
    said = command("train", "--from-plan=plan.yaml", "hydra.run.dir=run")
    assert (said.code, said.rules) == (2, ["memory"]) and not (here / "run").exists()
