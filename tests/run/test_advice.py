"""What would have needed less memory: every advice is a plan that compiles, and the numbers are that plan's."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled

from factory.execute import memory
from factory.execute.report import OUT_OF_MEMORY, as_json, blank, spent
from factory.plan.anew import Anew
from factory.plan.plan import Plan
from factory.run import launch
from factory.run.advice import cheapest
from factory.run.folder import RunFolder
from factory.run.screen import Screen

ANEW = cache(Anew())
GIB = 2**30


def with_capacity(plan: Plan, capacity: int) -> Plan:
    return replace(plan, estimate=replace(plan.estimate, memory=replace(plan.estimate.memory, capacity=capacity)))


def planned(*overrides: str) -> Plan:
    return compiled("hardware=cpu", "tracking=none", *overrides, training=False)


def test_every_advice_is_a_plan_that_needs_what_is_said(here: Path) -> None:
    plan = planned("method=full", "stage.batch_size=8", "precision=bf16")
    changes = cheapest(with_capacity(plan, 3 * GIB), None, ANEW)
    assert len(changes) == 3
    for change in changes:
        made = ANEW((*plan.overrides, *change.overrides))
        assert made.estimate.memory.total == change.estimated_bytes < plan.estimate.memory.total
        assert change.fits == (change.estimated_bytes <= 3 * GIB)
    assert [change.fits for change in changes] == sorted((change.fits for change in changes), reverse=True)


def test_what_leaves_the_result_as_it_is_comes_first(here: Path) -> None:
    plan = planned("model=llama3_8b", "hardware=a100_40gb", "stage.batch_size=8")
    first, second, third = cheapest(with_capacity(plan, plan.estimate.memory.total - 1), None, ANEW)
    assert first.overrides == ("stage.batch_size=4", "stage.gradient_accumulation_steps=2")  # no smaller than needed
    assert second.overrides == ("compute.activation_checkpointing=true",)
    assert third.overrides[:2] == first.overrides and first.fits and second.fits and third.fits


def test_all_layers_are_recomputed_where_some_did_not_do(here: Path) -> None:
    """Whether the number was asked for, or what fits by an estimate that was too low."""
    all_of_them, small = "compute.activation_checkpointing=true", ("model=llama3_8b", "hardware=a100_40gb")
    for asked, more in (
        ("compute.recomputed_layers=3", ("compute.recomputed_layers=auto",)),
        ("hardware.memory=20GB", ()),
    ):
        plan = planned(*small, "stage.batch_size=8", asked)
        assert plan.steps.patch.recomputed_layers
        changes = cheapest(with_capacity(plan, plan.estimate.memory.total - 1), None, ANEW)
        assert (all_of_them, *more) in [change.overrides for change in changes]


def test_a_smaller_batch_where_the_half_does_not_do(here: Path) -> None:
    plan = planned("model=llama3_8b", "hardware=a100_40gb", "stage.batch_size=8")
    whole = plan.estimate.memory
    capacity = whole.total - whole.activations + whole.activations // 5
    first = cheapest(with_capacity(plan, capacity), None, ANEW)[0]
    assert first.overrides == ("stage.batch_size=1", "stage.gradient_accumulation_steps=8")


def test_rules_are_kept(here: Path) -> None:
    """KTO needs two rows, layerwise steps do not accumulate, and a quantized base has an adapter."""
    kto = cheapest(with_capacity(planned("stage=kto", "stage.batch_size=4"), GIB // 4), None, ANEW)
    assert not any("stage.batch_size=1" in change.overrides for change in kto)
    layerwise = ("method=full", "method.layerwise=true", "stage.max_grad_norm=null", "stage.batch_size=4")
    for change in cheapest(with_capacity(planned(*layerwise), GIB // 4), None, ANEW):
        assert not any("accumulation" in text for text in change.overrides) or "method=qlora" in change.overrides


def test_nothing_is_advised_that_is_so_already(here: Path) -> None:
    """Of what recomputes a 4-bit base already, one row at a time, only the rows can be shorter."""
    there = ("method=qlora", "stage.batch_size=1", "compute.activation_checkpointing=true", "precision=pure_bf16")
    changes = cheapest(with_capacity(planned(*there, "data.max_length=512"), GIB // 4), None, ANEW)
    assert changes and all(text.startswith("data.max_length=") for change in changes for text in change.overrides)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("precision=fp32",), ("method.quantization.bits=4", "precision=pure_bf16")),
        (("method=full",), ("method=qlora", "precision=pure_bf16")),
        (("method=qlora",), ("precision=pure_bf16",)),
    ],
)
def test_four_bits_and_sixteen_for_the_rest(asked: tuple[str, ...], found: tuple[str, ...], here: Path) -> None:
    """As the warning of what never fits names them: neither does alone."""
    plan = planned("model=llama3_8b", "hardware.memory=8GB", *asked)
    first, *_ = cheapest(plan, None, ANEW)
    assert (first.overrides, first.fits) == (found, True)
    for alone in found if len(found) > 1 else ():
        assert not ANEW((*plan.overrides, alone)).estimate.memory.fits


def test_a_card_is_advised_no_numbers_that_it_lacks(here: Path) -> None:
    old = planned("model=llama3_8b", "hardware=single_gpu", "hardware.compute_capability=7.5", "hardware.memory=2GB")
    changes = cheapest(old, None, ANEW)
    assert changes and not any("pure_bf16" in text for change in changes for text in change.overrides)


def test_no_advice_comes_twice(here: Path) -> None:
    """All of it together is longer than what a kind of change has said only where it holds more."""
    changes = cheapest(with_capacity(planned("method=qlora"), GIB // 4), None, ANEW)
    assert len({change.estimated_bytes for change in changes}) == len(changes) > 1
    assert not any("method=qlora" in change.overrides for change in changes)


def test_an_estimate_that_was_too_low_is_not_believed(here: Path) -> None:
    """It ended at 1 GiB with less estimated: only what needs clearly less fits."""
    plan = planned("stage.batch_size=2")
    assert plan.estimate.memory.total < 8 * GIB
    for change in cheapest(with_capacity(plan, 64 * GIB), 8 * GIB, ANEW):
        assert change.fits == (change.estimated_bytes <= 0.9 * plan.estimate.memory.total)


def test_overrides_that_give_another_plan_are_no_ground_for_advice(here: Path) -> None:
    plan = planned("stage.batch_size=4")
    assert cheapest(plan.with_settings(overrides=("method.rank=3",)), None, ANEW) == []
    assert cheapest(plan.with_settings(overrides=("method=nowhere",)), None, ANEW) == []


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_says_that_memory_was_out(error: Exception, wanted: bool) -> None:
    assert memory.is_exhausted(error) is wanted


def test_torch_says_so_itself() -> None:
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_exhausted(error.value)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)


class Nobody:
    problem = None

    def finish(self, _report: dict[str, Any]) -> None: ...


def finished(plan: Plan, code: int, seen: launch.Seen, capsys: Any) -> tuple[str, dict[str, Any]]:
    folder = RunFolder("run")
    assert launch._finish(plan, folder, code, Nobody(), Screen(), seen, ANEW) == 1  # type: ignore[arg-type]
    return " ".join(capsys.readouterr().out.split()), json.loads(folder.report.read_text())


def test_a_child_that_ran_out_is_told_what_to_change(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = with_capacity(planned("method=full", "stage.batch_size=8"), 4 * GIB), RunFolder("run")
    folder.path.mkdir()
    said = spent("train", "RuntimeError: DefaultCPUAllocator: can't allocate memory", 3 * GIB)
    folder.report.write_text(as_json({**blank(plan, "failed"), "error": "x", OUT_OF_MEMORY: said}))
    text, report = finished(plan, 1, launch.Seen(), capsys)
    found = report[OUT_OF_MEMORY]
    assert "[out-of-memory] step=train" in text and "4.00 GiB were free when it was made, and 3.00 GiB" in text
    assert (found["capacity_bytes"], found["reached_bytes"]) == (4 * GIB, 3 * GIB)
    assert found["estimated_bytes"] == plan.estimate.memory.total
    assert len(found["changes"]) == 3
    assert all(" ".join(change["overrides"]) in text for change in found["changes"])
    assert report["memory"]["peak_bytes"] == 3 * GIB


def test_while_measuring_the_batch_that_is_measured_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = planned(), RunFolder("run")
    folder.path.mkdir()
    said = spent("baseline", "MemoryError: ", 3 * GIB)
    folder.report.write_text(as_json({**blank(plan, "failed"), "error": "x", OUT_OF_MEMORY: said}))
    text, _ = finished(plan, 1, launch.Seen(), capsys)
    assert "evaluate.batch_size=4 # what is measured is no part of the estimate" in text


@pytest.mark.parametrize("counted", [True, False])
def test_a_child_that_was_killed(counted: bool, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = with_capacity(planned("method=full", "stage.batch_size=8"), 40 * GIB), RunFolder("run")
    folder.path.mkdir()
    folder.events.write_text('{"event": "start", "name": "attach"}\n{"event": "start", "name": "train"}\n')
    text, report = finished(plan, -signal.SIGKILL, launch.Seen(30 * GIB, counted), capsys)
    said = "the system killed the process for lack of memory" if counted else "which the system does most often for"
    assert text.startswith("[killed] step=train: ") and said in text
    assert "and 30.00 GiB were reached" in text
    assert len(report[OUT_OF_MEMORY]["changes"]) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of an address space are Linux's")
def test_a_run_that_is_really_out_of_memory(here: Path) -> None:
    """Eight packs at once in an address space of 3.6 GB, then one of the changes that it was told."""
    limit = 3_500_000 * 1024
    words = ("tracking=none", "hardware=cpu", "evaluate.samples=0", "evaluate.perplexity=false", "data.max_samples=100")
    base = (*words, "stage.max_steps=1", "stage.batch_size=8", "data.packing=true")

    def run(*more: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "factory", *base, *more],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        return done.returncode, done.stdout

    code, text = run("hydra.run.dir=run")
    assert code == 1 and "[out-of-memory] step=train" in text and "Traceback" not in text, text
    found = json.loads(Path("run/report.json").read_text())[OUT_OF_MEMORY]
    fitting = [change for change in found["changes"] if change["fits"]]
    assert fitting and found["reached_bytes"] > GIB
    code, text = run(*fitting[0]["overrides"], "hydra.run.dir=again")
    assert code == 0, text
