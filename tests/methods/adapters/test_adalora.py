"""AdaLoRA: the budget falls as the paper says, the least important values go, and what is saved is what was kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import QUANTIZED, built
from conftest import refusals
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from factory.methods.adalora import run as adalora
from factory.steps import train

START, KEPT, ADAPTERS, STEPS = 6, 2, 14, 20
PLAIN = (
    "method=adalora",
    f"method.initial_rank={START}",
    f"method.rank={KEPT}",
    "method.update_interval=3",
    f"stage.max_steps={STEPS}",
    "stage.learning_rate=1e-2",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.logging_steps=1",
    "stage.max_grad_norm=null",
    "precision=fp32",
    "evaluate.perplexity=false",
)
FIRST, LAST = 2, 14  # of 20 steps a tenth before, three tenths after


def wanted_budget(step: int) -> int:
    """Equation 12 of the paper; `step` from 1."""
    first, last = START * ADAPTERS, KEPT * ADAPTERS
    if step <= FIRST:
        return first
    if step >= LAST:
        return last
    return int(last + (first - last) * (1 - (step - FIRST) / (LAST - FIRST)) ** 3)


@pytest.fixture
def steps(execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[dict[str, Any]]]:
    """A run, and of each of its steps the gradients, and the adapters after the inner optimizer and at the end."""
    seen: list[dict[str, Any]] = []

    def copied(model: Any, gradients: bool = False) -> dict[str, Any]:
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        return {name: (value.grad if gradients else value.detach()).double().numpy().copy() for name, value in named}

    class Watched(adalora.Allocating):
        def step(self) -> None:
            own, inner = {"gradients": copied(self.adapted, gradients=True)}, self.optimizers[0].step
            self.optimizers[0].step = lambda: (inner(), own.update(stepped=copied(self.adapted)))
            super().step()
            self.optimizers[0].step = inner
            seen.append({**own, "after": copied(self.adapted)})

    monkeypatch.setattr(adalora, "Allocating", Watched)
    return execute(*PLAIN), seen


def test_the_least_important_values_go(steps: tuple[Any, list[dict[str, Any]]]) -> None:
    """Equations 7 to 10 in NumPy and float64, with the betas of PEFT (0.85), and the schedule of equation 12."""
    done, seen = steps
    assert len(seen) == STEPS
    sensitivity = dict.fromkeys(seen[0]["stepped"], 0.0)
    uncertainty, gone = dict(sensitivity), None
    for step, now in enumerate(seen, 1):
        for name, weight in now["stepped"].items() if step <= LAST else ():
            importance = np.abs(weight * now["gradients"][name])
            sensitivity[name] = 0.85 * sensitivity[name] + 0.15 * importance
            uncertainty[name] = 0.85 * uncertainty[name] + 0.15 * np.abs(importance - sensitivity[name])
        if step > FIRST and (step % 3 == 0 or step == LAST) and step <= LAST:
            score = {name: np.multiply(sensitivity[name], uncertainty[name]) for name in sensitivity}
            each = {
                name: score[name][:, 0]
                + score[name.replace("_E", "_A")].mean(1)
                + score[name.replace("_E", "_B")].mean(0)
                for name in score
                if "lora_E" in name
            }
            limit = np.sort(np.concatenate(list(each.values())))[START * ADAPTERS - wanted_budget(step) - 1]
            gone = {name: values <= limit for name, values in each.items()}
            assert sum((~lost).sum() for lost in gone.values()) == wanted_budget(step)
        elif step <= LAST:
            gone = None
        for name, value in now["after"].items():
            expected = now["stepped"][name].copy()
            if gone is not None and "lora_E" in name:
                expected[gone[name]] = 0
            np.testing.assert_array_equal(value, expected, err_msg=f"step {step}: {name}")
    assert gone is not None and len({lost.sum() for lost in gone.values()}) > 1  # some adapters keep more than others
    assert done.run.checks["gradients_alive"]["passed"]


def test_what_is_saved_is_what_was_kept(steps: tuple[Any, list[dict[str, Any]]], tiny_model: Path) -> None:
    done, _ = steps
    saved = load_file(done.run.folder.model / "adapter_model.safetensors")
    ranks = [len(value) for name, value in saved.items() if "lora_E" in name]
    assert sum(ranks) == KEPT * ADAPTERS and len(ranks) == ADAPTERS
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    again = PeftModel.from_pretrained(base, done.run.folder.model).eval()
    ids = torch.tensor([done.dataset.train[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=ids).logits, done.model.eval()(input_ids=ids).logits, atol=1e-5, rtol=0
        )
    assert done.losses[-1] < done.losses[0]


def test_the_penalty_is_pefts(execute: Callable[..., Any]) -> None:
    """PEFT adds it to the loss of a model that is given labels; here it is no part of the loss that is shown."""
    done = execute(*PLAIN, "method.orthogonality=0.7", "stage.max_steps=3")
    model = done.model.eval()
    settings = train.method_settings(done.run)
    ids = torch.tensor([done.dataset.train[0].ids])
    with_it = model(input_ids=ids, labels=ids).loss
    without = model.base_model.model(input_ids=ids, labels=ids).loss
    found = adalora.penalty(model, settings)
    assert found.item() == pytest.approx((with_it - without).item(), rel=1e-4) and found > 0.1
    free = execute(*PLAIN, "method.orthogonality=0", "stage.max_steps=3", folder="free")
    assert free.losses[0] == pytest.approx(done.losses[0], rel=1e-6) and free.losses[-1] != done.losses[-1]
    assert adalora.penalty(free.model, settings) > found


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_run_reaches_its_budget(count: int, execute: Callable[..., Any]) -> None:
    done = execute(*PLAIN, f"stage.max_steps={count}")
    saved = load_file(done.run.folder.model / "adapter_model.safetensors")
    assert sum(len(value) for name, value in saved.items() if "lora_E" in name) == KEPT * ADAPTERS


@pytest.mark.parametrize("base", QUANTIZED)
def test_stands_beside_every_base(base: str, tiny_model: Path) -> None:
    made = built(tiny_model, "method=adalora", "method.initial_rank=4", "method.rank=3", *QUANTIZED[base])
    plain = made.logits(made.base())
    torch.testing.assert_close(made.logits(), plain, rtol=0, atol=1e-5)
    assert made.train() == set()
    assert (made.logits() - plain).abs().max() > 1e-3
    torch.testing.assert_close(made.logits(made.exported()), made.logits(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_learns_in_sixteen_bits(precision: str, execute: Callable[..., Any], tiny_model: Path, here: Path) -> None:
    done = execute(*PLAIN, f"precision={precision}")
    assert done.losses[-1] < done.losses[0]
    trained = {value.dtype for value in done.model.parameters() if value.requires_grad}
    assert trained == {torch.float32 if precision == "bf16" else torch.bfloat16}
    assert done.run.checks["gradients_alive"]["passed"]
    words = (f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={here / 'run/model'}", *PLAIN)
    assert [found.rule for found in refusals(*words)] == ["adapter-fits"]  # its ranks are no longer one number
