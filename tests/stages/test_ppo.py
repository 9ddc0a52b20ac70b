"""PPO and GRPO: each number of a step from the model's own logits, and runs that go on bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rolling import LORA, SHORT, STAGES, repeats
from safetensors.torch import load_file
from test_methods import FITTING
from transformers import AutoModelForCausalLM

from factory.config.refusal import UserError
from factory.execute.context import Interrupted
from factory.execute.report import write_report
from factory.plan.plan import stage_keys
from factory.rollouts import rolled, turns
from factory.run.folder import RunFolder, read_json
from factory.steps import train
from factory.steps.engine import Engine

Execute = Callable[..., Any]
Array = NDArray[np.float64]
ONE = (*SHORT, "stage.max_steps=1", "stage.update_epochs=1", "stage.gradient_accumulation_steps=4")


@pytest.fixture
def rolls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What every step of the runs from now on has rolled, and its updates."""
    found: list[tuple[Any, Any]] = []
    original = turns.updates

    def updates(run: Any, dataset: Any, rolled: Any, columns: Any) -> Any:
        made = original(run, dataset, rolled, columns)
        found.append((rolled, made))
        return made

    monkeypatch.setattr(turns, "updates", updates)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_layer_that_drops_out_by_itself_drops_nothing_here(
    stage: str, execute: Execute, scoring: str, here: Path
) -> None:
    model = tiny.save(here / "opt", model_type="opt", ffn_dim=64, word_embed_proj_dim=32, dropout=0.5)
    done = execute(*STAGES[stage], *LORA, *ONE, f"model.path={model}", scoring)
    assert done.run.checks["ratio_is_one"]["passed"], done.run.checks["ratio_is_one"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_end_that_is_spelled_in_pieces_is_refused(stage: str, execute: Execute, scoring: str) -> None:
    asked = (*STAGES[stage], *LORA, *ONE, scoring, "model.template=gemma")
    with pytest.raises(UserError, match=r"(?s)\[rollout-end\] model.template=gemma: .*<end_of_turn>.*new_tokens="):
        execute(*asked)
    done = execute(*asked, "model.new_tokens=['<end_of_turn>']", folder="added")
    assert 512 in done.dataset.ends.tokens and not done.dataset.ends.text


def exact(folder: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).double().eval()


def surprises(model: Any, answer: Any, temperature: float = 1.0) -> tuple[Array, Array]:
    """log p of an answer's tokens by the model's own logits, and the last hidden states before each: float64."""
    ids = torch.tensor([[*answer.prompt, *answer.ids]])
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    start = len(answer.prompt)
    logits = out.logits[0, start - 1 : -1].numpy() / temperature
    logits = logits - logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(len(answer.ids)), answer.ids], out.hidden_states[-1][0, start - 1 : -1].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_step_is_the_papers(
    temperature: float, execute: Execute, scoring: str, tiny_model: Path, rolls: list[Any]
) -> None:
    """From a policy that has moved and whose values are not 0: rewards, GAE, whitening, both losses, all in NumPy."""
    first = execute(*STAGES["ppo"], *LORA, *SHORT, scoring, folder="first")
    adapter = first.run.folder.model.resolve()
    rolls.clear()
    kl, weight, penalty = 0.3, 0.5, 0.25
    more = (
        f"model.adapter={adapter}",
        f"stage.kl_coefficient={kl}",
        f"stage.value_coefficient={weight}",
        f"stage.missing_end_penalty={penalty}",
        f"stage.temperature={temperature}",
        "stage.gamma=0.9",
        "stage.gae_lambda=0.8",
        "stage.kl_target=null",
    )
    done = execute(*STAGES["ppo"], *LORA, *ONE, scoring, *more)
    ((rolled, updates),) = rolls
    policy, head = (
        exact(tiny_model, adapter),
        load_file(adapter / "value_head.safetensors")["weight"][0].double().numpy(),
    )
    tokenizer = tiny.tokenizer()
    rewards, values, scores = list[Array](), list[Array](), list[float]()
    for row, answer in enumerate(rolled.answers):
        log_probs, states = surprises(policy, answer, temperature)
        count = len(answer.ids)
        np.testing.assert_allclose(rolled.log_probs[row, :count].numpy(), log_probs, atol=2e-5)
        np.testing.assert_allclose(rolled.reference[row, :count].numpy(), log_probs, atol=2e-5)  # before its first step
        np.testing.assert_allclose(rolled.values[row, :count].numpy(), states @ head, atol=2e-5)
        text = tokenizer.decode(answer.ids, skip_special_tokens=True)
        scores.append(text.count("e") / max(1, len(text)) - (0 if answer.ended else penalty))
        rewards.append(np.zeros(count))
        rewards[-1][-1] += scores[-1]
        values.append(states @ head)
    np.testing.assert_allclose(rolled.scores.numpy(), scores, atol=1e-6)
    advantages, returns = list[Array](), list[Array]()
    for reward, value in zip(rewards, values, strict=True):
        ahead, found = 0.0, np.zeros(len(reward))
        for at in reversed(range(len(reward))):
            later = value[at + 1] if at + 1 < len(value) else 0.0
            ahead = reward[at] + 0.9 * later - value[at] + 0.9 * 0.8 * ahead
            found[at] = ahead
        advantages.append(found)
        returns.append(found + value)
    flat = np.concatenate(advantages)
    white = (flat - flat.mean()) / np.sqrt(flat.var() + 1e-8)
    # the ratio is 1 and no value has moved: neither clip holds anything
    by_value = 0.5 * np.mean((np.concatenate(values) - np.concatenate(returns)) ** 2)
    (line,) = done.metrics
    assert line["loss"] == pytest.approx(-white.mean() + weight * by_value, rel=1e-3, abs=1e-6)
    assert line["value_loss"] == pytest.approx(by_value, rel=1e-3)
    assert line["ratio"] == pytest.approx(1, abs=1e-5)
    assert line["clip_fraction"] == 0
    assert line["reward"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert line["kl"] == pytest.approx(0, abs=1e-4)
    assert line["response_length"] == np.mean([len(answer.ids) for answer in rolled.answers])
    assert line["ended"] == np.mean([answer.ended for answer in rolled.answers])
    told = 1 - np.var(np.concatenate(returns) - np.concatenate(values)) / np.var(np.concatenate(returns))
    assert line["explained_variance"] == pytest.approx(told, rel=1e-2, abs=1e-3)
    assert len(updates) == 1
    assert updates[0].trained == sum(len(answer.ids) for answer in rolled.answers)


def test_the_gradient_is_that_of_the_losses(
    execute: Execute, scoring: str, rolls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a second update, when ratios are no longer 1: its loss falls along its gradient as its norm says (float64)."""
    norms, weights = list[float](), list[dict[str, torch.Tensor]]()
    accumulate = Engine.accumulate

    def accumulating(engine: Engine, *values: Any) -> Any:
        weights.append({name: value.detach().clone().double() for name, value in engine.trained.items()})
        found = accumulate(engine, *values)
        gradient = {name: value.grad.double() for name, value in engine.trained.items() if value.grad is not None}
        weights.append(gradient)
        norms.append(found[0].item())
        return found

    monkeypatch.setattr(Engine, "accumulate", accumulating)
    done = execute(
        *STAGES["ppo"],
        *LORA,
        *ONE,
        scoring,
        "stage.update_epochs=2",
        "stage.learning_rate=1e-1",
        "stage.value_coefficient=0.5",
        "stage.max_grad_norm=null",
    )
    ((_, updates),) = rolls
    before, gradient = weights[2], weights[3]
    model = done.model.double()

    def loss(far: float) -> float:
        from factory.stages.ppo import run as ppo

        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value + far * gradient[name])
            own = stage_keys(done.run.plan)
            wide = [
                {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
                for batch in updates[1].batches
            ]
            return float(sum(ppo.loss(model, batch, own).total for batch in wide)) / updates[1].trained

    assert loss(0) == pytest.approx(norms[1], rel=1e-4, abs=1e-6)
    square = sum(float(value.square().sum()) for value in gradient.values())
    far = 1e-6 / square**0.5
    assert (loss(far) - loss(-far)) / (2 * far) == pytest.approx(square, rel=1e-3)
    assert any(abs(line["ratio"] - 1) > 1e-4 for line in done.metrics)


@pytest.mark.parametrize(("loss", "beta"), [("grpo", 0.0), ("grpo", 0.3), ("dr_grpo", 0.0)])
def test_a_step_of_grpo_is_the_papers(loss: str, beta: float, execute: Execute, scoring: str, rolls: list[Any]) -> None:
    done = execute(*STAGES["grpo"], *LORA, *ONE, scoring, f"stage.loss={loss}", f"stage.beta={beta}")
    ((rolled, updates),) = rolls
    assert (rolled.reference is None) == (beta == 0) and rolled.values is None
    groups = rolled.scores.double().numpy().reshape(2, 4)
    for prompts in (rolled.answers[:4], rolled.answers[4:]):
        assert all(each.prompt == prompts[0].prompt for each in prompts)
    assert rolled.answers[0].prompt != rolled.answers[4].prompt
    apart = groups - groups.mean(1, keepdims=True)
    if loss == "grpo":
        apart /= groups.std(1, ddof=1, keepdims=True) + 1e-4
    lengths = np.array([len(answer.ids) for answer in rolled.answers])
    counted = np.full(8, 6.0) if loss == "dr_grpo" else lengths
    (line,) = done.metrics
    assert line["loss"] == pytest.approx(float(np.mean(-apart.ravel() * lengths / counted)), abs=1e-5)
    assert line["ratio"] == pytest.approx(1, abs=1e-5)
    assert line["reward_std"] == pytest.approx(groups.std(1, ddof=1).mean(), rel=1e-4)
    assert ("kl" in line) == (beta > 0)
    assert updates[0].samples == 8


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_is_the_uninterrupted_one(
    stage: str, execute: Execute, scoring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, losses, the KL's cost, weights and measures, bit for bit."""
    more = ("stage.kl_target=0.01", "stage.kl_horizon=8") if stage == "ppo" else ()
    options = (*STAGES[stage], *LORA, *SHORT, scoring, *more, "stage.max_steps=5")
    whole = execute(*options, folder="whole")
    original, done = train._updates, iter(range(1, 100))

    def updates(run: Any, *values: Any) -> Any:
        run.stopping = run.stopping or next(done) == 3
        return original(run, *values)

    with monkeypatch.context() as patched:
        patched.setattr(train, "_updates", updates)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == "step-000003"
    resumed = execute(*options, resume_from=saved)
    assert len(whole.metrics) == 5
    assert repeats(resumed.metrics) == repeats(whole.metrics)
    assert resumed.result["evaluate"] == whole.result["evaluate"]
    wanted = dict(whole.model.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.named_parameters())
    if stage == "ppo":
        costs = [line["kl_coefficient"] for line in whole.metrics]
        assert len(set(costs)) > 2 and costs[0] == 0.1
        state = read_json(saved / "state.json")
        assert state is not None and state["position"]["kl_coefficient"] == costs[3]


@pytest.mark.parametrize("method", ["full", "freeze", "galore", "badam", "llama_pro"])
@pytest.mark.parametrize("stage", STAGES)
def test_methods_without_an_adapter_train_without_a_reference(
    stage: str, method: str, execute: Execute, scoring: str
) -> None:
    free = "stage.beta=0" if stage == "grpo" else "stage.kl_coefficient=0"
    more = () if stage == "grpo" else ("stage.kl_target=null",)
    done = execute(*STAGES[stage], f"method={method}", *FITTING[method], *SHORT, scoring, free, *more)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert "kl" not in done.metrics[0]
    assert any(not value.detach().equal(done.start[name]) for name, value in done.model.named_parameters())


@pytest.mark.slow
def test_checkpointed_activations_change_no_loss(execute: Execute, scoring: str) -> None:
    plain = execute(*STAGES["ppo"], *LORA, *SHORT, scoring, folder="plain")
    recomputed = execute(*STAGES["ppo"], *LORA, *SHORT, scoring, "compute.activation_checkpointing=true", folder="r")
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-4, abs=1e-6)


def test_a_models_own_dropout_is_off(execute: Execute, scoring: str, tmp_path: Path) -> None:
    """Else the ratio were not 1 where nothing was learnt."""
    base = tiny.save(tmp_path / "dropping", attention_dropout=0.5)
    done = execute(f"model.path={base}", *STAGES["ppo"], *LORA, *ONE, scoring)
    assert done.metrics[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert done.run.checks["ratio_is_one"]["passed"]


@pytest.mark.parametrize("stage", STAGES)
def test_layers_of_8_bits_give_what_they_give_in_training(
    stage: str, execute: Execute, scoring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they would round what comes in: the ratio were not 1 where nothing was learnt.

    Answers are sampled as fast as they can be.
    """
    sample, sampling = rolled.sample, list[bool]()

    def noted(model: Any, *given: Any, **named: Any) -> Any:
        sampling.extend(module.training for module in model.modules())
        return sample(model, *given, **named)

    monkeypatch.setattr(rolled, "sample", noted)
    done = execute(*STAGES[stage], *LORA, *ONE, "method.quantization.bits=8", scoring)
    assert done.metrics[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert sampling and not any(sampling)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_lower_precisions_run(precision: str, execute: Execute, judge: Path) -> None:
    done = execute(*STAGES["ppo"], *LORA, *SHORT, f"stage.reward_model={judge}", f"precision={precision}")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


@pytest.mark.parametrize(("scores", "size"), [("alike", 4), ("tenths", 8)])
def test_answers_that_are_all_alike_say_nothing_of_gradients(
    scores: str, size: int, execute: Execute, scoring: str
) -> None:
    """No group has a better answer: nothing moves, nothing is called dead, and the share of such groups is shown.

    The mean of eight tenths is none in float32.
    """
    same = scoring.replace("letters_scoring:letters", f"letters_scoring:{scores}")
    done = execute(*STAGES["grpo"], *LORA, *SHORT, same, "stage.beta=0", f"stage.group_size={size}")
    assert "gradients_alive" not in done.run.checks
    assert [line["groups_alike"] for line in done.metrics] == [1, 1, 1]
    assert all(value.detach().equal(done.start[name]) for name, value in done.model.named_parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_prompts_alone_are_answered_as_those_of_answered_rows(
    stage: str, execute: Execute, scoring: str, here: Path, rolls: list[Any]
) -> None:
    answered = [{"instruction": f"Say {n}.", "output": "It is said."} for n in range(20)]
    shapes: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
        "answered": lambda row: row,
        "unanswered": lambda row: row | {"output": ""},
        "prompts": lambda row: {"prompt": row["instruction"]},
        "messages": lambda row: {"messages": [{"role": "user", "content": row["instruction"]}]},
        "pairs": lambda row: {"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."},
    }
    found = []
    for name, shape in shapes.items():
        (here / f"{name}.jsonl").write_text("\n".join(json.dumps(shape(row)) for row in answered))
        # which rows are held out goes by their content
        data = ["data=file", f"data.path={name}.jsonl", "data.validation_fraction=0"]
        data += ["data.sources.file.format=prompts"] if name == "pairs" else []
        done = execute(*STAGES[stage], *LORA, *SHORT, scoring, *data, folder=name)
        assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
        assert done.run.plan.steps.align.sources["file"].format == ("alpaca" if name == "answered" else "prompts")
        found.append(
            (repeats(done.metrics), [(each.prompt, each.ids) for rolled, _ in rolls for each in rolled.answers])
        )
        rolls.clear()
    assert found[0][1]
    for other in found[1:]:
        assert other[1] == found[0][1]
        assert other[0] == found[0][0]


def test_answers_without_a_score_are_left_out(execute: Execute, scoring: str, rolls: list[Any]) -> None:
    """Of each two groups the first has no score, and the second's last answer none."""
    three = scoring.replace("letters_scoring:letters", "letters_scoring:three")
    done = execute(*STAGES["grpo"], *LORA, *ONE, three, "stage.beta=0")
    ((rolled, updates),) = rolls
    (line,) = done.metrics
    scored = rolled.scores[4:7].double()
    assert line["unscored"] == pytest.approx(5 / 8) and rolled.scores.isnan().sum() == 5
    assert line["reward"] == pytest.approx(float(scored.mean()))
    assert line["reward_std"] == pytest.approx(float(scored.std()) / 2, rel=1e-4)
    assert line["groups_alike"] == (1 if scored.std() == 0 else 0.5)
    advantages = torch.cat([batch["advantages"] for batch in updates[0].batches])
    assert advantages.isfinite().all() and (advantages == 0).sum() >= 5
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


def test_a_reward_that_scores_nothing_teaches_nothing(execute: Execute, scoring: str) -> None:
    none = scoring.replace("letters_scoring:letters", "letters_scoring:none")
    done = execute(*STAGES["grpo"], *LORA, *SHORT, none, "stage.beta=0", "stage.eval_steps=1")
    assert [line["unscored"] for line in done.metrics] == [1, 1, 1] and "reward" not in done.metrics[0]
    assert "reward" not in done.result["evaluate"] and "response_length" in done.result["evaluate"]
    assert all(value.detach().equal(done.start[name]) for name, value in done.model.named_parameters())


def test_ppo_needs_a_score_of_each_answer(execute: Execute, scoring: str) -> None:
    three = scoring.replace("letters_scoring:letters", "letters_scoring:three")
    with pytest.raises(UserError, match="reward-values"):
        execute(*STAGES["ppo"], *LORA, *ONE, three)


@pytest.mark.parametrize("stage", STAGES)
def test_what_people_watch_is_written_and_reported(stage: str, execute: Execute, scoring: str) -> None:
    done = execute(*STAGES[stage], *LORA, *SHORT, scoring, "evaluate.samples=1")
    watched = {"reward", "kl", "entropy", "response_length", "ended", "clip_fraction", "ratio"}
    watched |= {"policy_loss", "value_loss", "kl_coefficient"} if stage == "ppo" else {"reward_std", "groups_alike"}
    assert all(watched <= line.keys() for line in done.metrics)
    write_report(done.run, "finished", done.result, None)
    report = read_json(done.run.folder.report)
    assert report is not None
    names = {"reward", "kl", "response_length", "ended"}
    assert report["evaluate"].keys() == names | {f"{name}_before" for name in names}
    assert report["evaluate"]["kl_before"] == pytest.approx(0, abs=1e-5)
    assert len(report["samples"]) == 1


def test_what_is_measured_is_of_greedy_answers(execute: Execute, scoring: str, tiny_model: Path) -> None:
    """The held-out rows' rewards before and after, by the saved model's own answers."""
    done = execute(*STAGES["ppo"], *LORA, *SHORT, scoring)
    rows, tokenizer = done.dataset.validation, tiny.tokenizer()
    assert len(rows) == 4
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for name in ("reward_before", "reward"):
        model = base if name == "reward_before" else PeftModel.from_pretrained(base, done.run.folder.model).eval()
        scores = []
        for number in range(len(rows)):
            ids = torch.tensor([rows[number].ids[: rows[number].prompt]])
            given = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2)
            text = tokenizer.decode(given[0, ids.shape[1] :], skip_special_tokens=True)
            scores.append(text.count("e") / max(1, len(text)))
        assert done.result["evaluate"][name] == pytest.approx(np.mean(scores), rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_measuring_between_steps_changes_nothing(stage: str, execute: Execute, scoring: str) -> None:
    """Greedy answers draw nothing, and the policy trains on as it did."""
    options = (*STAGES[stage], *LORA, *SHORT, scoring)
    plain = execute(*options, folder="plain")
    measured = execute(*options, "stage.eval_steps=1", "stage.metric_for_best_model=reward", folder="measured")
    names = ("loss", "reward", "kl", "ratio")
    assert [[line[name] for name in names] for line in measured.metrics] == [
        [line[name] for name in names] for line in plain.metrics
    ]
    assert measured.metrics[-1]["eval_reward"] == pytest.approx(measured.result["evaluate"]["reward"])


@pytest.mark.parametrize(("template", "other"), [("auto", False), ("chatml", False), ("vicuna", True)])
def test_a_reward_model_that_knows_another_form_is_told(
    template: str, other: bool, execute: Execute, judge: Path
) -> None:
    """A template of another name that writes the same is none."""
    done = execute(*STAGES["grpo"], *LORA, *ONE, f"stage.reward_model={judge}", f"model.template={template}")
    events = map(json.loads, done.run.folder.events.read_text().splitlines())
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any("another chat template" in note for note in notes) == other
