"""AdaLoRA: the budget falls as the paper says, the least important values go, and what is saved is what was kept."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from built import IDS, QUANTIZED, built, saved_pruned
from conftest import AS_TRANSFORMERS, compiled, refusals
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from factory.methods.adalora import run as adalora

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
    *AS_TRANSFORMERS,
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
    settings = done.run.plan.settings.method
    ids = torch.tensor([done.dataset.train[0].ids])
    with_it = model(input_ids=ids, labels=ids).loss
    without = model.base_model.model(input_ids=ids, labels=ids).loss
    found = adalora.penalty(model, settings)
    assert found.item() == pytest.approx((with_it - without).item(), rel=1e-4) and found > 0.1
    free = execute(*PLAIN, "method.orthogonality=0", "stage.max_steps=3", folder="free")
    assert free.losses[0] == pytest.approx(done.losses[0], rel=1e-6) and free.losses[-1] != done.losses[-1]
    assert adalora.penalty(free.model, settings) > found


def test_the_penalty_builds_nothing_off_the_device() -> None:
    """Of matrices without memory every tensor on the way is one without memory."""
    made = set[str]()

    class Places(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            made.update(each.device.type for each in tree_leaves(found) if isinstance(each, torch.Tensor))
            return found

    layers = torch.nn.ModuleDict({name: torch.nn.ModuleDict() for name in ("lora_A", "lora_B")})
    for number, size in enumerate((6, 6, 9)):
        layers["lora_A"][str(number)] = torch.nn.Linear(size, 4, bias=False, device="meta")  # type: ignore[operator]
        layers["lora_B"][str(number)] = torch.nn.Linear(4, size, bias=False, device="meta")  # type: ignore[operator]
    settings: Any = SimpleNamespace(orthogonality=0.5)
    with Places():
        adalora.penalty(torch.nn.ModuleDict({"layer": layers}), settings).backward()
    assert made == {"meta"}


def test_a_model_of_an_earlier_step_has_more_than_its_rank() -> None:
    """The plan says so where such a one may be saved."""
    adalora, every = ("model=llama2_7b", "method=adalora"), ("stage.eval_steps=10",)
    early, best = "stage.early_stopping_patience=2", "stage.load_best_model_at_end=true"
    said = "adapters have method.rank=8 only in the last steps, and up to method.initial_rank=12 before"

    def notes(*words: str) -> list[str]:
        return [note for note in compiled(*words, training=False).notes if said in note]

    assert not notes(*adalora, *every) and not notes("model=llama2_7b", *every, early, best)
    for asked, keys in (
        ((early,), "stage.early_stopping_patience"),
        ((best,), "stage.load_best_model_at_end"),
        ((early, best), "stage.early_stopping_patience, stage.load_best_model_at_end"),
    ):
        assert [note.partition(":")[0] for note in notes(*adalora, *every, *asked)] == [keys]


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
def test_learns_in_sixteen_bits(precision: str, execute: Callable[..., Any]) -> None:
    done = execute(*PLAIN, f"precision={precision}")
    assert done.losses[-1] < done.losses[0]
    trained = {value.dtype for value in done.model.parameters() if value.requires_grad}
    assert trained == {torch.float32 if precision == "bf16" else torch.bfloat16}
    assert done.run.checks["gradients_alive"]["passed"]


# --- from a saved one on

GONE = (*PLAIN, "method.rank=1", "stage.max_steps=8", "evaluate.perplexity=true")  # so little that whole layers go


def values_by_layer(folder: Path) -> dict[str, int]:
    """Of a saved adapter, by what its pattern says."""
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    return {name.removesuffix(".lora_E"): sum(kept) for name, kept in pattern.items()}


@pytest.mark.parametrize(
    ("own", "near"),
    [
        ((), 1e-5),
        (("precision=bf16",), 1e-4),
        (("precision=pure_bf16",), 1e-3),
        (QUANTIZED["nf4"], 1e-4),
        (QUANTIZED["int8"], 1e-4),
    ],
    ids=["fp32", "bf16", "pure_bf16", "nf4", "int8"],
)
def test_goes_on_with_what_was_kept(own: tuple[str, ...], near: float, execute: Callable[..., Any], here: Path) -> None:
    first = execute(*GONE, *own)
    folder, again = first.run.folder.model, here / "again/model"
    ranks, weights = values_by_layer(folder), load_file(folder / "adapter_model.safetensors")
    kept = sum(ranks.values())
    assert 0 in ranks.values() and max(ranks.values()) > 1 and kept <= ADAPTERS  # in 16 bits two may be as important
    second = execute(*GONE, *own, f"model.adapter={folder}", folder="again")
    plan = second.run.plan
    assert second.result["evaluate"]["perplexity_before"] == pytest.approx(
        first.result["evaluate"]["perplexity"], rel=near
    )
    assert plan.estimate.parameters.trainable == sum(value.numel() for value in weights.values())
    assert plan.settings.method.ranks == ranks
    assert [note for note in plan.notes if f"pruned to {kept} of {START * ADAPTERS} singular values" in note]
    assert all(check["passed"] for check in second.run.checks.values()), second.run.checks
    assert {"trainable_as_planned", "gradients_alive"} <= second.run.checks.keys()
    assert second.losses[-1] < second.losses[0] < first.losses[0]
    for name, value in second.model.named_parameters():  # every value that was kept goes on to be trained
        assert value.requires_grad == ("lora_" in name and value.numel() > 0), name
        assert value.detach().equal(second.start[name]) != value.requires_grad, name
    assert values_by_layer(again) == ranks
    trained = load_file(again / "adapter_model.safetensors")
    assert {name: value.shape for name, value in trained.items()} == {
        name: value.shape for name, value in weights.items()
    }
    third = execute(*GONE, *own, f"model.adapter={again}", folder="third")
    assert third.result["evaluate"]["perplexity_before"] == pytest.approx(
        second.result["evaluate"]["perplexity"], rel=near
    )


def test_the_loaded_values_are_not_rounded(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT resizes in the type of the base, here bfloat16."""
    words = ("method=adalora", "method.initial_rank=4", "method.rank=3", "precision=bf16")
    wanted = saved_pruned(built(tiny_model, *words), tmp_path, [True, False, True, True])
    second = built(tiny_model, *words, f"model.adapter={tmp_path}")
    found = {name.replace(".default", ""): value for name, value in second.model.named_parameters()}
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype == torch.float32
        assert found[name].equal(value) and not value.equal(value.bfloat16().float())


def test_what_went_on_is_read_and_merged_by_peft(execute: Callable[..., Any], tiny_model: Path, here: Path) -> None:
    execute(*GONE)
    done = execute(*GONE, f"model.adapter={here / 'run/model'}", folder="again")
    ids = torch.tensor([done.dataset.train[0].ids])
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        plain, wanted = base(input_ids=ids).logits, done.model.eval()(input_ids=ids).logits
        read: Any = PeftModel.from_pretrained(base, here / "again/model").eval()
        assert (wanted - plain).abs().max() > 1e-2
        torch.testing.assert_close(read(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)
        merged = read.merge_and_unload()
        assert not [name for name, _ in merged.named_parameters() if "lora_" in name]
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-4, rtol=0)


def test_one_that_goes_on_is_resumed(execute: Callable[..., Any], here: Path) -> None:
    execute(*GONE)
    words = (*GONE, f"model.adapter={here / 'run/model'}", "stage.save_steps=3")
    whole = execute(*words, folder="whole")
    part = execute(*words, folder="part", resume_from=whole.run.folder.path / "checkpoints" / "step-000006")
    assert part.losses == whole.losses[6:] and len(part.losses) == 2


def test_what_is_resumed_lies_where_the_adapters_do(tiny_model: Path) -> None:
    """A checkpoint is read to the CPU: on a GPU, for which a device without numbers stands here, no step could add."""
    made = built(tiny_model, "method=adalora", f"method.initial_rank={START}", f"method.rank={KEPT}")

    def optimizer() -> adalora.Allocating:
        return adalora.Allocating(made.model, torch.optim.SGD(made.trained.values(), lr=0.1))

    made.model(input_ids=IDS, labels=IDS).loss.backward()
    first = optimizer()
    first.step()
    saved = first.state_dict()
    assert len(saved["importance"]) == len(made.trained)
    made.model.to("meta")
    again = optimizer()
    again.load_state_dict(saved)
    for value in made.trained.values():
        value.grad = torch.zeros_like(value)
    again.allocator.update_ipt(again.adapted)
    assert {value.device.type for value in again.state_dict()["deviation"].values()} == {"meta"}


def test_an_unpruned_one_has_its_ranks_chosen(execute: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    words = ("method=adalora", f"method.initial_rank={START}", f"method.rank={KEPT}", "precision=fp32")
    first = built(tiny_model, *words)
    first.train()
    first.method.export(first.model, first.settings, tmp_path)
    done = execute(*PLAIN, f"model.adapter={tmp_path}")
    assert done.run.plan.settings.method.ranks is None
    assert sum(values_by_layer(done.run.folder.model).values()) == KEPT * ADAPTERS


@pytest.mark.parametrize("pattern", [3, {"q": 2}, {"q.lora_E": [True]}])
def test_a_pattern_that_does_not_say_the_ranks_is_refused(
    pattern: Any, execute: Callable[..., Any], tiny_model: Path, here: Path
) -> None:
    execute(*GONE)
    file = here / "run/model/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rank_pattern": pattern}))
    found = refusals(f"model.path={tiny_model}", "hardware=cpu", f"model.adapter={here / 'run/model'}", *GONE)
    assert [refusal.rule for refusal in found] == ["adapter-fits"]
