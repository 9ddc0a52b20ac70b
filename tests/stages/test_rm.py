"""Reward models: scores and loss against float64 NumPy, the head under every method, saved, read and gone on from."""

import re
from collections.abc import Callable
from math import log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import AS_TRANSFORMERS, compiled, refusals
from grids import diagonal
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_methods import COUNTS, FITTING
from transformers import AutoModelForCausalLM

from factory.config.refusal import UserError
from factory.data.batches import collate, micro_batches
from factory.data.dataset import IGNORED, Example
from factory.execute.context import Interrupted
from factory.execute.verify import verify
from factory.plan import heads
from factory.run.folder import RunFolder
from factory.stages.rm.run import scores
from factory.steps import train
from factory.steps.engine import Engine

Execute = Callable[..., Any]
Weights = dict[str, torch.Tensor]
RM = ("stage=rm", "stage.logging_steps=1", "stage.warmup_ratio=0", "stage.save_steps=null")
SHORT = (*RM, "stage.max_steps=3", "stage.batch_size=2", "stage.learning_rate=1e-2", "precision=fp32")
LM_HEAD = 512 * 32
SCORE = "score_head.weight"


def test_weights_are_rounded_to_what_is_saved_and_the_head_is_not(execute: Execute) -> None:
    done = execute(*SHORT[:-1], "precision=bf16", "method=full")
    trained = {name: value.detach() for name, value in done.model.named_parameters() if value.requires_grad}
    score = trained.pop(SCORE)
    assert trained
    assert score.dtype == torch.float32 and not score.equal(score.bfloat16().float())
    assert all(value.dtype == torch.float32 and value.equal(value.bfloat16().float()) for value in trained.values())


# --- the formula


def score(model: Any, head: np.ndarray, row: Example) -> float:
    """The head's product with the last layer's output at the last trained token, normalized as RMSNorm's paper says."""
    seen: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last = max(at for at, label in enumerate(row.labels) if label != IGNORED)
    with torch.no_grad():
        model(input_ids=torch.tensor([row.ids[: last + 1]]))
    hook.remove()
    out = seen[0][0, -1].numpy()
    normalized = out / np.sqrt((out**2).mean() + model.config.rms_norm_eps) * model.model.norm.weight.detach().numpy()
    return float(normalized @ head[0])


def judged(base: Path, weights: Weights, micros: list[list[Any]]) -> dict[str, float]:
    """The mean over pairs of -log sigmoid(better - worse) (Ouyang et al. 2022, eq. 1), and of what is watched."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    wide = {name: value.double() for name, value in weights.items()}
    head = wide.pop(SCORE).numpy()
    model.load_state_dict(wide)
    pairs = [[score(model, head, row) for row in (pair.chosen, pair.rejected)] for micro in micros for pair in micro]
    better, worse = np.array(pairs).T
    return {
        "loss": float(np.mean([log1p(np.exp(-gap)) for gap in better - worse])),
        "rewards/chosen": better.mean(),
        "rewards/rejected": worse.mean(),
        "rewards/margin": (better - worse).mean(),
        "rewards/accuracy": (better > worse).mean(),
    }


def micros_of(done: Any, step: int) -> list[list[Any]]:
    stage, rows = done.run.plan.settings.stage, done.dataset.train
    chosen = micro_batches(
        step, len(rows), stage.batch_size, stage.gradient_accumulation_steps, done.run.plan.settings.seed
    )
    return [[rows[number] for number in micro] for micro in chosen]


@pytest.mark.parametrize("tied", [False, True])
def test_every_step_is_the_formula(
    tied: bool, execute: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, rewards and gradient over uneven micro-batches, and the held-out pairs before and after."""
    weights, gradients = list[Weights](), list[Weights]()
    accumulate, clip = Engine.accumulate, Engine.clip

    def accumulating(engine: Engine, *values: Any) -> Any:
        weights.append({name: value.detach().clone() for name, value in engine.model.state_dict().items()})
        return accumulate(engine, *values)

    def clipping(engine: Engine) -> float:
        grads = {name: value.grad for name, value in engine.trained.items() if value.grad is not None}
        gradients.append({name: value.double() for name, value in grads.items()})
        return clip(engine)

    monkeypatch.setattr(Engine, "accumulate", accumulating)
    monkeypatch.setattr(Engine, "clip", clipping)
    base = tiny.save(tmp_path / "base", tie_word_embeddings=tied)
    done = execute(
        f"model.path={base}",
        "method=full",
        *RM,
        "precision=fp32",
        "stage.learning_rate=5e-3",
        "stage.batch_size=2",
        "stage.gradient_accumulation_steps=2",
        "stage.num_epochs=2",
        "data.max_samples=12",
        "data.validation_fraction=0.42",
        "evaluate.batch_size=2",
        "stage.max_grad_norm=null",
    )
    steps = [micros_of(done, step) for step in range(len(done.metrics))]
    assert [[len(micro) for micro in micros] for micros in steps] == [[2, 2], [2, 1]] * 2
    for line, micros, before, gradient in zip(done.metrics, steps, weights, gradients, strict=True):
        wanted = judged(base, before, micros)
        for key, value in wanted.items():
            assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-4), f"{key} of step {line['step']}"
        norm = float(torch.stack([value.square().sum() for value in gradient.values()]).sum().sqrt())
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
        far, losses = 1e-5, []
        for sign in (1, -1):
            moved = {name: value.double() for name, value in before.items()}
            for name, value in gradient.items():
                moved[name] = moved[name] + sign * far * value / norm
            if tied:
                moved["lm_head.weight"] = moved["model.embed_tokens.weight"]
            losses.append(judged(base, moved, micros)["loss"])
        assert (losses[0] - losses[1]) / (2 * far) == pytest.approx(norm, rel=1e-3)

    evaluate, rows = done.result["evaluate"], done.dataset.validation
    held = [[rows[number] for number in range(len(rows))]]
    assert len(held[0]) == 5
    saved: Any = AutoModelForCausalLM.from_pretrained(done.run.folder.model, dtype=torch.float32)
    after = saved.state_dict() | {SCORE: load_file(done.run.folder.model / "score_head.safetensors")["weight"]}
    both = (("_before", judged(base, weights[0], held)), ("", judged(base, after, held)))
    wanted = {f"{key}{when}": value for when, values in both for key, value in values.items()}
    assert evaluate.keys() == wanted.keys()
    for key, value in wanted.items():
        assert evaluate[key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


def test_padding_and_company_change_no_score(execute: Execute) -> None:
    """A row's score is that of the row alone: read at its own last trained token, whatever follows it."""
    done = execute("method=full", *SHORT)
    pairs = [done.dataset.train[number] for number in range(4)]
    together = scores(done.model, collate(pairs, 0, "cpu"))
    for number, pair in enumerate(pairs):
        alone = scores(done.model, collate([pair.chosen], 0, "cpu"))
        assert together[number].item() == pytest.approx(alone.item(), abs=1e-5)
        end = max(at for at, label in enumerate(pair.chosen.labels) if label != IGNORED) + 1
        assert end < len(pair.chosen.ids)  # the template writes a line's end after the turn's
        longer = Example([*pair.chosen.ids[:end], 7, 8, 9], pair.chosen.labels[:end] + [IGNORED] * 3)
        assert scores(done.model, collate([longer], 0, "cpu")).item() == pytest.approx(alone.item(), abs=1e-5)
        assert scores(done.model, collate([pair.rejected], 0, "cpu")).item() != pytest.approx(alone.item(), abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_scores_are_wide_whatever_computes(precision: str, execute: Execute) -> None:
    done = execute("method=lora", "method.rank=4", *SHORT, f"precision={precision}")
    assert done.model.get_parameter(SCORE).dtype == (torch.float32 if precision == "bf16" else torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = scores(done.model, collate([done.dataset.train[number] for number in range(4)], 0, "cpu"))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks


# --- what trains


@pytest.mark.parametrize("method", FITTING)
def test_the_head_trains_beside_every_method(method: str, execute: Execute) -> None:
    """What is planned, to the last element: the score's head too, and no longer the language model's."""
    done = execute(f"method={method}", *FITTING[method], *SHORT)
    unread = LM_HEAD if method in ("full", "galore", "apollo", "apollo_mini") else 0
    count = COUNTS[method] + 32 - unread
    parameters = done.run.plan.estimate.parameters
    assert parameters.trainable == count == done.run.plan.steps.attach.trainable
    assert parameters.trainable_by_module["score_head"] == 32
    assert sum(parameters.trainable_by_module.values()) == count
    assert sum(value.numel() for value in done.model.parameters() if value.requires_grad) == count
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert {"trainable_as_planned", "gradients_alive", "tokens_accounted", "loss_mask"} <= done.run.checks.keys()
    assert "logits_as_model" not in done.run.checks
    for name, value in done.model.named_parameters():
        same = value.detach().equal(done.start[name])
        assert same != value.requires_grad, f"{name}: trained {value.requires_grad}, unchanged {same}"
    assert done.model.get_parameter(SCORE).requires_grad
    weights = load_file(next(done.run.folder.model.glob("*model.safetensors")))
    assert not [name for name in weights if "score" in name]
    saved = load_file(done.run.folder.model / "score_head.safetensors")
    assert saved.keys() == {"weight"} and saved["weight"].equal(done.model.get_parameter(SCORE))


@pytest.mark.parametrize(
    "words",
    [
        ("method=badam", "method.switch_interval=1", "method.embedding=true", "method.head=true"),
        ("method=full", "method.layerwise=true", "stage.max_grad_norm=null"),
        ("method=galore", "method.rank=8", "method.layerwise=true", "stage.max_grad_norm=null"),
        ("method=full", "stage.optimizer=muon"),
        ("method=full", "stage.optimizer=adafactor"),
        ("method=freeze", "method.num_layers=1", "method.extra_modules=[embed_tokens,norm]"),
        ("method=full", "model.new_tokens=['<a>']"),
        ("method=lora", "method.rank=4", "model.new_tokens=['<a>']"),
    ],
    ids=" ".join,
)
def test_what_a_method_may_do_besides(
    words: tuple[str, ...], execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head moves in every step, the language model's in none."""
    seen = list[torch.Tensor]()
    accumulate = Engine.accumulate

    def accumulating(engine: Engine, *values: Any) -> Any:
        seen.append(engine.model.get_parameter(SCORE).detach().clone())
        return accumulate(engine, *values)

    monkeypatch.setattr(Engine, "accumulate", accumulating)
    done = execute(*words, *RM, "stage.max_steps=5", "stage.batch_size=2", "stage.lr_scheduler=constant")
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    seen.append(done.model.get_parameter(SCORE).detach())
    assert len(seen) == 6
    assert not [step for step in range(5) if seen[step].equal(seen[step + 1])]
    unread = [name for name, _ in done.model.named_parameters() if "lm_head" in name]
    assert unread
    assert all(done.model.get_parameter(name).equal(done.start[name]) for name in unread)


def test_a_tied_head_is_the_embedding_and_trains(execute: Execute, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "tied", tie_word_embeddings=True)
    done = execute(f"model.path={base}", "method=full", *SHORT)
    assert done.run.plan.estimate.parameters.trainable == COUNTS["full"] - LM_HEAD + 32
    assert done.model.lm_head.weight is done.model.model.embed_tokens.weight
    assert not done.model.lm_head.weight.equal(done.start["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["opt", "gpt2", "phi", "gemma2", "mixtral"])
def test_other_models(kind: str, execute: Execute, tmp_path: Path) -> None:
    """Heads with a bias, of their own scale, capped, and states that are projected to another width before the head."""
    own: dict[str, dict[str, Any]] = {
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
        "gpt2": {"n_inner": 64, "num_key_value_heads": 4},
        "gemma2": {"head_dim": 8},
        "mixtral": {"num_local_experts": 4},
    }
    base = tiny.save(tmp_path / kind, model_type=kind, **own.get(kind, {}))
    done = execute(f"model.path={base}", "method=full", *SHORT)
    assert all(check["passed"] for check in done.run.checks.values()), done.run.checks
    assert done.model.get_parameter(SCORE).shape == (1, 16 if kind == "opt" else 32)
    trained = {name for name, value in done.model.named_parameters() if value.requires_grad}
    assert not {"lm_head.weight", "lm_head.bias"} & trained


def test_the_head_starts_from_the_seed(execute: Execute) -> None:
    once, again, other = (
        execute("method=lora", *SHORT, f"seed={seed}", "stage.max_steps=1", folder=f"run{number}").start[SCORE]
        for number, seed in enumerate((1, 1, 2))
    )
    assert once.equal(again) and not once.equal(other)
    assert 0.5 < once.norm() < 1.5  # of 32 draws of N(0, 1 / 33)


def test_streamed_pairs_train(execute: Execute) -> None:
    done = execute("method=lora", *SHORT, "data.streaming=true")
    assert len(done.losses) == 3
    assert {"loss", "loss_before", "rewards/accuracy", "rewards/accuracy_before"} <= done.result["evaluate"].keys()


# --- what the plan says


def test_a_score_answers_nothing(execute: Execute, tiny_model: Path) -> None:
    base = (f"model.path={tiny_model}", "hardware=cpu", "stage=rm", "stage.max_steps=1", "data.max_samples=12")
    plan = compiled(*base)
    assert plan.steps.evaluate.samples == 0
    assert any(note.startswith("evaluate.samples: 0,") for note in plan.notes)
    assert "score_head.weight (1 x 32) starts at random" in plan.notes
    assert compiled(*base[:2], "stage=dpo").steps.evaluate.samples == 1
    done = execute(plan=plan)
    assert done.result["samples"] == []
    (refusal,) = refusals(*base, "evaluate.samples=2")
    assert refusal.rule == "nothing-written"


def test_memory_counts_the_head_and_no_logits(tiny_model: Path) -> None:
    def memory(*overrides: str) -> Any:
        words = (f"model.path={tiny_model}", "hardware=cpu", "precision=fp32", "method=lora", "data.max_samples=12")
        return compiled(*words, *overrides).estimate.memory

    ours, theirs = memory("stage=rm"), memory("stage=orpo")
    assert (ours.weights, ours.gradients, ours.optimizer) == (
        theirs.weights + 32 * 4,
        theirs.gradients + 32 * 4,
        theirs.optimizer + 2 * 32 * 4,
    )
    assert ours.activations < theirs.activations


def test_full_tuning_reads_float32_though_a_head_is_frozen(tiny_model: Path) -> None:
    """Weights that are trained in float32 must not have been rounded to bfloat16 when they were read."""
    words = (f"model.path={tiny_model}", "hardware=cpu", "precision=bf16", "method=full", "data.max_samples=12")
    assert compiled(*words, "stage=rm").steps.load.dtype == compiled(*words).steps.load.dtype == "float32"


# --- saved, read again, gone on from


def batch_of(done: Any) -> dict[str, Any]:
    return collate([done.dataset.train[number] for number in range(4)], 0, "cpu")


def scored(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return scores(model, batch)


@pytest.mark.parametrize("method", ["full", "freeze", "galore", "badam", "llama_pro", "lora", "dora", "vera", "loha"])
def test_reads_again_to_equal_scores(method: str, execute: Execute, tiny_model: Path) -> None:
    done = execute(f"method={method}", *FITTING[method], *SHORT, *AS_TRANSFORMERS)
    folder, batch = done.run.folder.model, batch_of(done)
    adapter = (folder / "adapter_config.json").is_file()
    again: Any = AutoModelForCausalLM.from_pretrained(tiny_model if adapter else folder, dtype=torch.float32)
    again = heads.load(PeftModel.from_pretrained(again, folder) if adapter else again, folder).eval()
    assert scored(again, batch).equal(scored(done.model, batch))
    again.get_parameter(SCORE).data = done.start[SCORE]
    assert not scored(again, batch).equal(scored(done.model, batch))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_card_says_how_to_score(method: str, execute: Execute, tiny_model: Path) -> None:
    """Its own lines, run as they stand there, give the score of the loss."""
    done = execute(f"method={method}", *FITTING[method], *SHORT)
    card = (done.run.folder.model / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("THIS_FOLDER", str(done.run.folder.model)).replace("THE_BASE", str(tiny_model))
    row = done.dataset.train[0].chosen
    end = max(at for at, label in enumerate(row.labels) if label != IGNORED) + 1
    known: dict[str, Any] = {"ids": torch.tensor([row.ids[:end]]), "load_file": load_file, "PeftModel": PeftModel}
    known["AutoModelForCausalLM"] = AutoModelForCausalLM
    exec(code, known)
    assert known["score"].item() == pytest.approx(scored(done.model, collate([row], 0, "cpu")).item(), abs=1e-5)


@pytest.mark.parametrize(("method", "key"), [("lora", "model.adapter"), ("full", "model.path")])
def test_goes_on_from_the_saved_head(method: str, key: str, execute: Execute, tiny_model: Path) -> None:
    first = execute(f"method={method}", *SHORT, "data.max_samples=12")
    saved = first.run.folder.model.absolute()
    base = (f"method={method}", *SHORT, "data.max_samples=12", f"{key}={saved}", "seed=9")
    second = execute(*base, folder="second")
    assert f"score_head.weight (1 x 32) goes on from score_head.safetensors in {key}" in second.run.plan.notes
    assert second.start[SCORE].equal(first.model.get_parameter(SCORE))
    start = second.start
    assert all(start[name].equal(value) for name, value in first.model.named_parameters())
    assert not second.model.get_parameter(SCORE).equal(start[SCORE])
    # the plan holds the run to the head that it was made with
    head = load_file(saved / "score_head.safetensors")["weight"]
    save_file({"weight": head + 1}, saved / "score_head.safetensors")
    with pytest.raises(UserError, match=r"\[facts-changed\]"):
        verify(second.run.plan)
    save_file({"weight": torch.zeros(1, 16)}, saved / "score_head.safetensors")
    (refusal,) = refusals("hardware=cpu", *(f"model.path={tiny_model}",) * (method == "lora"), *base)
    assert (refusal.rule, refusal.setting.partition("=")[0]) == ("head-fits", key)
    assert "1 x 16" in refusal.wrong


def test_an_sft_adapter_goes_on_with_a_new_head(execute: Execute) -> None:
    first = execute("method=lora", *SHORT[1:], "stage=sft")
    saved = first.run.folder.model.absolute()
    assert not list(saved.glob(heads.FILES))
    second = execute("method=lora", *SHORT, f"model.adapter={saved}", folder="second")
    assert "score_head.weight (1 x 32) starts at random" in second.run.plan.notes
    assert all(second.start[name].equal(value) for name, value in first.model.named_parameters())


STEPS, STOPPED = 6, 3
RESUMED = {
    "full": ("method=full",),
    "full layerwise": ("method=full", "method.layerwise=true", "stage.max_grad_norm=null"),
    "galore": ("method=galore", "method.rank=8", "method.update_interval=2"),
    "badam": ("method=badam", "method.switch_interval=2"),
    "badam_ratio": ("method=badam_ratio", "method.ratio=0.3"),
    "lora": ("method=lora", "method.dropout=0.1"),
    "qlora": ("method=qlora",),
    "lora streamed": ("method=lora", "data.streaming=true", "data.max_samples=null"),
}


@pytest.mark.parametrize(("case", "precision"), diagonal(RESUMED, ("fp32", "bf16")))
def test_an_interrupted_run_is_the_uninterrupted_one(
    case: str, precision: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (f"stage.max_steps={STEPS}", "data.max_samples=22", f"precision={precision}")
    options = (*SHORT, *own, "stage.weight_decay=0.1", *RESUMED[case])
    whole = execute(*options, folder="whole")
    original, done = train._updates, iter(range(1, 100))

    def updates(run: Any, *values: Any) -> Any:
        run.stopping = run.stopping or next(done) == STOPPED
        return original(run, *values)

    with monkeypatch.context() as patched:
        patched.setattr(train, "_updates", updates)
        with pytest.raises(Interrupted):
            execute(*options)
    saved = RunFolder("run").checkpoint()
    assert saved is not None and saved.name == f"step-{STOPPED:06d}"
    resumed = execute(*options, resume_from=saved)
    names = ("step", "loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracy", "tokens")
    assert [[line[name] for name in names] for line in resumed.metrics] == [
        [line[name] for name in names] for line in whole.metrics
    ]
    assert resumed.result["evaluate"] == whole.result["evaluate"]
    wanted = dict(whole.model.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.named_parameters())
