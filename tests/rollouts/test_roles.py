"""One base in all roles: no tensor twice, the reference's logits and the reward's scores to the bit at any step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import AS_TRANSFORMERS, compiled
from peft import PeftModel
from rolling import LORA, SHORT, STAGES, Execute
from safetensors.torch import load_file
from test_methods import FITTING
from transformers import AutoModelForCausalLM

from factory.data.batches import collate
from factory.plan import heads
from factory.rollouts import roles
from factory.stages.rm.run import scores

IDS = torch.tensor([list(range(20, 52))])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def pairs(done: Any) -> dict[str, Any]:
    return collate([done.dataset.train[number] for number in range(6)], 0, "cpu")


def judged(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad(), roles.reward(model):
        return scores(model, batch)


@pytest.mark.parametrize("stage", STAGES)
def test_one_base_and_frozen_roles(
    stage: str, execute: Execute, judge: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors counted; after each step the reference is the base and the reward model what it was saved as."""
    from factory.rollouts import turns

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = turns.updates

    def updates(run: Any, dataset: Any, rolled: Any, columns: Any) -> Any:
        with roles.reference(models[0]):
            reference = logits(models[0])
        seen.append((reference, judged(models[0], collate(rolled.examples, 0, "cpu"))))
        batches.append(rolled.examples)
        return original(run, dataset, rolled, columns)

    models, batches = list[Any](), list[Any]()
    attach = roles.attach

    def keeping(run: Any, model: Any) -> None:
        models.append(model)
        attach(run, model)

    monkeypatch.setattr(turns, "updates", updates)
    monkeypatch.setattr(f"factory.stages.{stage}.run.attach", keeping)
    done = execute(*STAGES[stage], *LORA, *SHORT, *AS_TRANSFORMERS, f"stage.reward_model={judge}")

    named = dict(done.model.named_parameters())
    places = {value.untyped_storage().data_ptr() for value in named.values()}
    assert len(places) == len(named)
    reward = sum(value.numel() for name, value in named.items() if ".reward." in name)
    plan = done.run.plan.estimate.parameters
    assert sum(value.numel() for value in named.values()) == plan.total + plan.trainable + reward + 32
    assert reward == plan.trainable - (32 if stage == "ppo" else 0)  # an adapter of the same shape
    assert done.model.score_head.weight.shape == (1, 32)

    own, saved = base(tiny_model), PeftModel.from_pretrained(base(tiny_model), judge / "model").eval()
    heads.load(saved, judge / "model")
    assert len(seen) == 3
    with torch.no_grad():
        for (reference, by_reward), examples in zip(seen, batches, strict=True):
            assert torch.equal(reference, logits(own))
            assert torch.equal(by_reward, scores(saved, collate(examples, 0, "cpu")))
    frozen = {name: value for name, value in named.items() if not value.requires_grad}
    assert all(torch.equal(value, done.start[name]) for name, value in frozen.items())
    assert any(".reward." in name for name in frozen)
    assert not torch.equal(logits(done.model), logits(own))
    assert done.metrics[0]["reward"] == pytest.approx(float(seen[0][1].mean()), rel=1e-5)


def test_what_is_saved_is_the_policy_alone(execute: Execute, judge: Path, tiny_model: Path) -> None:
    done = execute(*STAGES["ppo"], *LORA, *SHORT, *AS_TRANSFORMERS, f"stage.reward_model={judge}")
    folder = done.run.folder.model
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"} <= names
    assert not names & {"reward", "reference", "score_head.safetensors"}
    assert not [name for name in load_file(folder / "adapter_model.safetensors") if "reward" in name]
    again = PeftModel.from_pretrained(base(tiny_model), folder).eval()
    torch.testing.assert_close(logits(again), logits(done.model), rtol=0, atol=1e-5)
    value = load_file(folder / "value_head.safetensors")["weight"]
    assert torch.equal(value, done.model.value_head.weight) and value.any()


@pytest.mark.parametrize("method", ["dora", "ia3", "loha", "lokr", "lora", "oft", "qlora", "rslora", "vera"])
def test_every_adapter_has_all_roles(method: str, execute: Execute, tiny_model: Path) -> None:
    """The reward adapter is of the same kind."""
    own = (f"method={method}", *FITTING[method], *AS_TRANSFORMERS)
    rm = execute(*own, "stage=rm", "stage.max_steps=3", "stage.learning_rate=1e-2", "precision=fp32", folder="rm")
    judge = rm.run.folder.path.resolve()
    batch = pairs(rm)
    with torch.no_grad():
        wanted = scores(rm.model, batch)
    done = execute("stage=ppo", *own, *SHORT, f"stage.reward_model={judge}")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"ratio_is_one", "gradients_alive", "trainable_as_planned"} <= done.run.checks.keys()
    assert torch.equal(judged(done.model, batch), wanted)
    assert done.metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
    if method != "qlora":
        with roles.reference(done.model):
            assert torch.equal(logits(done.model), logits(base(tiny_model)))
    for name, value in done.model.named_parameters():
        assert value.detach().equal(done.start[name]) != value.requires_grad, name


def test_switching_changes_no_mark(execute: Execute, judge: Path) -> None:
    done = execute(*STAGES["ppo"], *LORA, *SHORT, f"stage.reward_model={judge}", "stage.max_steps=1", *AS_TRANSFORMERS)
    marks = {name: value.requires_grad for name, value in done.model.named_parameters()}
    before = logits(done.model)
    for role in (roles.reference, roles.reward):
        with role(done.model):
            assert not torch.equal(logits(done.model), before)
        assert {name: value.requires_grad for name, value in done.model.named_parameters()} == marks
        assert torch.equal(logits(done.model), before)


@pytest.mark.parametrize("stage", STAGES)
def test_the_reference_is_the_adapter_that_is_gone_on_from(
    stage: str, execute: Execute, scoring: str, tiny_model: Path
) -> None:
    """Not the bare base: what the policy was before its first step."""
    first = execute(*LORA, "stage=sft", "stage.max_steps=4", "stage.learning_rate=1e-2", "precision=fp32", folder="sft")
    adapter = first.run.folder.model.resolve()
    done = execute(*STAGES[stage], *LORA, *SHORT, *AS_TRANSFORMERS, scoring, f"model.adapter={adapter}")
    wanted = logits(PeftModel.from_pretrained(base(tiny_model), adapter).eval())
    with roles.reference(done.model):
        assert torch.equal(logits(done.model), wanted)
    assert not torch.allclose(wanted, logits(base(tiny_model)), atol=1e-3)
    assert done.metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(done.metrics[-1]["kl"]) > 1e-4
    assert {path.name for path in done.run.folder.model.iterdir()} & {"reference"} == set()


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_reference_of_an_adapter_that_starts_from_the_weights(
    method: str, execute: Execute, scoring: str, tiny_model: Path
) -> None:
    """Adapters off would leave the base without what the adapter took out of it."""
    done = execute("stage=ppo", f"method={method}", *FITTING[method], *SHORT, scoring, *AS_TRANSFORMERS)
    with roles.reference(done.model):
        torch.testing.assert_close(logits(done.model), logits(base(tiny_model)), rtol=0, atol=1e-5)
    with torch.no_grad(), done.model.disable_adapter():
        assert not torch.allclose(logits(done.model), logits(base(tiny_model)), atol=1e-2)


def test_a_whole_reward_model_is_a_second_one(execute: Execute) -> None:
    rm = execute("method=full", "stage=rm", "stage.max_steps=3", "precision=fp32", folder="rm")
    judge = rm.run.folder.path.resolve()
    done = execute(*STAGES["ppo"], *LORA, *SHORT, *AS_TRANSFORMERS, f"stage.reward_model={judge}")
    assert any("second set of weights" in note for note in done.run.plan.notes)
    assert not any(".reward." in name for name, _ in done.model.named_parameters())
    plain = compiled(f"model.path={done.run.plan.steps.load.path}", *STAGES["ppo"], *LORA, *SHORT, "stage.reward=a:b")
    more = done.run.plan.estimate.memory.weights - plain.estimate.memory.weights
    assert more == 4 * (rm.run.plan.estimate.parameters.total + 32)
    assert done.metrics[0]["reward"] != done.metrics[1]["reward"]
