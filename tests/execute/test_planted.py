"""For every check there is a fault that turns it, and what hangs on the same, red: without the check nothing is red."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import compiled

import factory
from factory.data import batches, proof
from factory.data.prepare.store import Prepared
from factory.execute.checks import CHECKS
from factory.execute.report import memory_as_estimated
from factory.ranks import shared
from factory.rollouts import turns
from factory.steps import pack, proofs, train
from factory.steps.engine import Engine

Patch = pytest.MonkeyPatch
Execute = Callable[..., Any]
SHORT = (
    "stage.batch_size=2",
    "stage.gradient_accumulation_steps=1",
    "stage.max_steps=2",
    "stage.learning_rate=1e-2",
    "data.max_samples=8",
    "evaluate.perplexity=false",
    "method.rank=2",
)
SAMPLED = (
    "stage.max_new_tokens=3",
    "stage.rollout_batch_size=2",
    "stage.group_size=2",
    "stage.update_epochs=1",
    "stage.reward=letters_scoring:counted",
)
FROZEN = "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight"


# --- faults


def other_text(patch: Patch) -> None:
    from transformers import PreTrainedTokenizerFast

    real = PreTrainedTokenizerFast.apply_chat_template
    patch.setattr(PreTrainedTokenizerFast, "apply_chat_template", lambda *a, **k: real(*a, **k) + " ")


def mask_by_one(patch: Patch) -> None:
    real = Prepared.side

    def side(prepared: Any, row: int, **which: Any) -> Any:
        found = real(prepared, row, **which)
        return replace(found, spans=found.spans - 1)

    patch.setattr(Prepared, "side", side)


def batch_without_a_row(patch: Patch) -> None:
    real = batches.micro_batches
    patch.setattr(batches, "micro_batches", lambda *args: [rows[:-1] or rows for rows in real(*args)])


def uncounted_row(patch: Patch) -> None:
    real = pack._rows
    patch.setattr(pack, "_rows", lambda *args: (found := real(*args)) | {"validation": found["validation"] + 1})


def other_scale(patch: Patch) -> None:
    from factory import losses

    real = losses.head_of
    patch.setattr(losses, "head_of", lambda model: replace(real(model), scale=1.5))


def documents_as_one(patch: Patch) -> None:
    patch.setattr(batches, "_lengths", lambda example, length: (length,))


def other_ratio(patch: Patch) -> None:
    real = turns.sampled_log_probs

    def moved(*args: Any, **more: Any) -> Any:
        values, states = real(*args, **more)
        return values + 0.1, states

    patch.setattr(turns, "sampled_log_probs", moved)


def lost_gradient(patch: Patch) -> None:
    real = Engine.clip

    def clip(engine: Engine) -> float:
        next(iter(engine.trained.values())).grad.zero_()
        next(reversed(engine.trained.values())).grad.zero_()
        return real(engine)

    patch.setattr(Engine, "clip", clip)


def after_saving(fault: Callable[[Any, Any], None]) -> Callable[[Patch], None]:
    """Something happens to the model or to the run's folder when the model has just been saved."""

    def plant(patch: Patch) -> None:
        real = train.save_model

        def saving(run: Any, model: Any, *rest: Any) -> None:
            real(run, model, *rest)
            fault(run, model)

        patch.setattr(train, "save_model", saving)

    return plant


def base_moves(_run: Any, model: Any) -> None:
    import torch

    with torch.no_grad():
        model.get_parameter(FROZEN).mul_(1.5)


def start_moves(_run: Any, model: Any) -> None:
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B.reference." in name:
                value += 1


def merged_twice(patch: Patch) -> None:
    from peft.tuners.lora.layer import Linear

    real = Linear.get_delta_weight
    patch.setattr(Linear, "get_delta_weight", lambda layer, adapter: 2 * real(layer, adapter))


def not_merged(patch: Patch) -> None:
    from peft.tuners.lora.layer import Linear

    def merge(_layer: Any) -> None:
        raise NotImplementedError("no delta weight")

    patch.setattr(Linear, "merge", merge)


@dataclass(frozen=True)
class Planted:
    """`red` is all that it turns red."""

    red: set[str]
    plant: Callable[[Patch], None]
    overrides: tuple[str, ...] = ()


PLANTED = {
    "another text": Planted({"template"}, other_text),
    "the mask by one": Planted({"loss_mask"}, mask_by_one),
    "a row is not trained": Planted({"tokens_accounted"}, batch_without_a_row),
    "a row is not counted": Planted({"tokens_accounted"}, uncounted_row),
    "the head's scale": Planted({"logits_as_model"}, other_scale),
    "documents see each other": Planted(
        {"packing_isolation"}, documents_as_one, ("stage=pt", "data.isolate_documents=true")
    ),
    "rows of a batch see each other": Planted({"packing_isolation"}, documents_as_one, ("stage.batch_size=2",)),
    "an answer sees the other": Planted({"packing_isolation"}, documents_as_one, ("stage=orpo", "stage.batch_size=1")),
    "a score of what the other said": Planted(
        {"packing_isolation"}, documents_as_one, ("stage=rm", "stage.batch_size=1")
    ),
    "probabilities of another": Planted({"ratio_is_one"}, other_ratio, ("stage=grpo", *SAMPLED)),
    "no gradient": Planted({"gradients_alive"}, lost_gradient),
    "the base moves, of dpo": Planted(
        {"frozen_unchanged", "reference_unchanged", "save_reload"}, after_saving(base_moves), ("stage=dpo",)
    ),
    "the base moves, of grpo": Planted(
        {"frozen_unchanged", "reference_unchanged", "save_reload"}, after_saving(base_moves), ("stage=grpo", *SAMPLED)
    ),
    "a copied start moves": Planted(
        {"frozen_unchanged", "reference_unchanged"},
        after_saving(start_moves),
        ("stage=grpo", *SAMPLED, "method=pissa"),
    ),
    "merged twice": Planted({"merge"}, merged_twice),
    "merged twice, in bfloat16": Planted({"merge"}, merged_twice, ("precision=pure_bf16",)),
    "not merged by PEFT": Planted({"merge"}, not_merged),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_red(name: str, execute: Execute, scoring: str, monkeypatch: Patch) -> None:
    planted = PLANTED[name]
    planted.plant(monkeypatch)
    done = execute(*SHORT, "precision=fp32", *planted.overrides)
    assert {name for name, check in done.run.checks.items() if not check["passed"]} == planted.red


def test_a_fault_of_the_proof_is_no_verdict(execute: Execute, monkeypatch: Patch) -> None:
    """Only what `merge` raises speaks of the adapter; what is wrong with comparing it is told as a fault."""
    real = proofs._moved_by_merging

    def moved(*given: Any) -> float:
        real(*given)
        raise RuntimeError("a layer that was widened")

    monkeypatch.setattr(proofs, "_moved_by_merging", moved)
    with pytest.raises(RuntimeError, match="a layer that was widened"):
        execute(*SHORT, "precision=fp32")


def test_the_numbers_of_a_reference_that_is_gone(execute: Execute, monkeypatch: Patch) -> None:
    """Of full tuning there is no model to measure them again: what was written before the first step is compared."""
    real = train.train

    def training(run: Any, **values: Any) -> Any:
        found = real(run, **values)
        sums = values["reference"].sums
        sums |= {key: value + 0.5 for key, value in sums.items()}
        return found

    monkeypatch.setattr(train, "train", training)
    done = execute(*SHORT[:-1], "precision=fp32", "method=full", "stage=dpo")
    assert {name for name, check in done.run.checks.items() if not check["passed"]} == {"reference_unchanged"}


def test_another_count_than_planned(execute: Execute, tiny_model: Path) -> None:
    plan = compiled(*SHORT, f"model.path={tiny_model}", "hardware=cpu", "tracking=none", "evaluate.samples=0")
    attach = replace(plan.steps.attach, trainable=plan.steps.attach.trainable + 1)
    done = execute(plan=replace(plan, steps=replace(plan.steps, attach=attach)))
    assert {name for name, check in done.run.checks.items() if not check["passed"]} == {"trainable_as_planned"}


def test_ranks_that_hold_other_weights(monkeypatch: Patch) -> None:
    import torch

    from factory.ranks.ddp import Ddp

    monkeypatch.setattr(shared.Shared, "finish", lambda engine: None)
    checks: dict[str, bool] = {}
    world = SimpleNamespace(gathered=lambda sums: [sums, [[one + 1, other] for one, other in sums]])
    plan = SimpleNamespace(settings=SimpleNamespace(hardware=SimpleNamespace(num_processes=2)))
    run = SimpleNamespace(plan=plan, world=world, check=lambda name, passed, detail: checks.update({name: passed}))
    engine: Any = SimpleNamespace(_run=run, trained={"a": torch.ones(2)})
    monkeypatch.setattr("factory.ranks.ddp.super", lambda: SimpleNamespace(finish=lambda: None), raising=False)
    Ddp.finish(engine)
    assert checks == {"ranks_agree": False}


def test_memory_off_the_estimate() -> None:
    assert not memory_as_estimated({"peak_bytes": 1200}, 1000)["memory_as_estimated"]["passed"]


# where a check's fault is planted that no run above has
ELSEWHERE = {
    "saved": "test_proofs.py::test_a_saved_tensor_is_not_the_trained_one",
    "resume_point": "test_proofs.py::test_a_checkpoint_that_does_not_open",
    "trainable_as_planned": f"{Path(__file__).name}::test_another_count_than_planned",
    "ranks_agree": f"{Path(__file__).name}::test_ranks_that_hold_other_weights",
    "memory_as_estimated": f"{Path(__file__).name}::test_memory_off_the_estimate",
    "written": "../export/test_round_trip.py::test_a_file_that_is_not_what_was_written_leaves_nothing",
    "as_trained": "../export/test_own_base.py::test_another_base_under_the_same_name_is_refused",
    "media_as_processor": "../vision/test_seen_runs.py::test_tokens_that_are_not_the_processors_are_red",
}


def test_every_check_has_a_fault() -> None:
    planted = {name for each in PLANTED.values() for name in each.red}
    assert planted | ELSEWHERE.keys() == CHECKS.keys()
    for name, place in ELSEWHERE.items():
        file, _, test = place.partition("::")
        tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
        (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == test)
        assert name in ast.unparse(found)


def test_the_table_holds_the_names_that_are_checked() -> None:
    """Those that steps check, and those of the proofs on rows."""
    root = Path(factory.__file__).parent
    texts = (path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    named = {name for text in texts for name in re.findall(r'\.check\(\s*"(\w+)"', text)}
    tree = ast.parse(Path(proof.__file__).read_text(encoding="utf-8"))
    verdicts = (node.elts[0] for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 3)
    named |= {first.value for first in verdicts if isinstance(first, ast.Constant) and isinstance(first.value, str)}
    assert named | {"memory_as_estimated"} == CHECKS.keys()
