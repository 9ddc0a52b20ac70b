"""The training loop: each number it logs, and each weight it leaves, is what plain torch and transformers give."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import exp, isfinite
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import AS_TRANSFORMERS, compiled
from grids import diagonal
from safetensors.torch import load_file
from test_methods import FITTING
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.data.batches import micro_batches
from factory.data.dataset import Example
from factory.evaluation import rows as evaluated
from factory.steps.engine import Engine

Execute = Callable[..., Any]
CONTEXT = 256  # of the tiny model
PLAIN = (
    "precision=fp32",
    "stage.logging_steps=1",
    "stage.warmup_ratio=0",
    "stage.lr_scheduler=constant",
    "stage.learning_rate=1e-3",
    "stage.save_steps=null",
    "evaluate.perplexity=false",
)
FULL, LORA = ("method=full", *PLAIN), ("method=lora", "method.rank=4", *PLAIN)
GALORE = ("method=galore", "method.rank=8", *PLAIN)


def fresh(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def rows_of_step(done: Any, step: int) -> list[Any]:
    stage = done.run.plan.settings.stage
    micros = micro_batches(
        step, len(done.dataset.train), stage.batch_size, stage.gradient_accumulation_steps, done.run.plan.settings.seed
    )
    return [done.dataset.train[index] for micro in micros for index in micro]


def surprise(model: Any, rows: list[Any]) -> Any:
    """Sum of -log p over the trained tokens, a row at a time, with the model's own loss."""
    losses = [
        model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss * row.trained for row in rows
    ]
    return torch.stack(losses).sum()


def test_accumulated_batches_are_one_batch(execute: Execute) -> None:
    short = (*FULL, "stage.max_steps=6")
    whole = execute(*short, "stage.batch_size=4", folder="whole")
    parts = execute(*short, "stage.batch_size=1", "stage.gradient_accumulation_steps=4", folder="parts")
    sorted_parts = execute(*short, "stage.batch_size=2", "stage.gradient_accumulation_steps=2", folder="sorted")
    assert sorted_parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert len({row.trained for row in rows_of_step(whole, 0)}) > 1  # else a mean of means would pass
    assert len(whole.losses) == 6
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert [line["tokens"] for line in parts.metrics] == [line["tokens"] for line in whole.metrics]


def test_nothing_padded_trains_the_same(execute: Execute) -> None:
    """Rows one after another, isolated, against a row at a time: the losses and the weights after six updates."""
    rows = ("stage.max_steps=6", "data.max_samples=40")
    free = execute(*FULL, *rows, "stage.batch_size=4", folder="free")
    alone = execute(*FULL, *rows, "stage.batch_size=1", "stage.gradient_accumulation_steps=4", folder="alone")
    assert free.run.plan.steps.pack.padding_free and not alone.run.plan.steps.pack.padding_free
    assert free.losses == pytest.approx(alone.losses, rel=1e-5)
    assert [line["grad_norm"] for line in free.metrics] == pytest.approx(
        [line["grad_norm"] for line in alone.metrics], rel=1e-4
    )
    proof = free.run.checks["packing_isolation"]
    assert proof["passed"] and proof["detail"].startswith("3 documents")  # no more: the first step waits for it
    assert "packing_isolation" not in alone.run.checks


@pytest.mark.parametrize("stage", ["dpo", "orpo", "rm", "kto"])
def test_joined_answers_train_the_same(stage: str, execute: Execute) -> None:
    """Against rows of their own: the losses, the gradients and what is measured of held-out pairs."""
    rows = ("stage.max_steps=4", f"stage={stage}", "stage.batch_size=2", "method=lora", "precision=fp32")
    joined = execute(*rows, folder="joined")
    apart = execute(*rows, "compute.attention=sdpa", folder="apart")
    assert joined.run.plan.steps.pack.padding_free and not apart.run.plan.steps.pack.padding_free
    assert joined.losses == pytest.approx(apart.losses, rel=1e-4)
    assert [line["grad_norm"] for line in joined.metrics] == pytest.approx(
        [line["grad_norm"] for line in apart.metrics], rel=1e-3
    )
    assert [line["tokens"] for line in joined.metrics] == [line["tokens"] for line in apart.metrics]
    assert joined.result["evaluate"]["loss"] == pytest.approx(apart.result["evaluate"]["loss"], rel=1e-4)
    assert joined.run.checks["packing_isolation"]["passed"] and "packing_isolation" not in apart.run.checks


def test_the_first_step_is_plain_torchs(execute: Execute, tiny_model: Path) -> None:
    """Loss, gradient norm and clipping of step 1, computed with the model's own loss."""
    limit = 0.05
    done = execute(*FULL, "stage.max_steps=1", f"stage.max_grad_norm={limit}", "stage.save_steps=1")
    model, rows = fresh(tiny_model), rows_of_step(done, 0)
    loss = surprise(model, rows) / sum(row.trained for row in rows)
    loss.backward()
    norm = torch.stack([value.grad.double().pow(2).sum() for value in model.parameters()]).sum().sqrt().item()
    (line,) = done.metrics
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert norm > 2 * limit
    saved = torch.load(done.run.folder.checkpoint() / "optimizer.pt", weights_only=True)["state"].values()
    moment = torch.stack([state["exp_avg"].double().pow(2).sum() for state in saved]).sum().sqrt().item()
    assert moment == pytest.approx((1 - 0.9) * limit, rel=1e-4)  # of the clipped gradient


def test_the_seed_is_the_order(execute: Execute) -> None:
    first, again, other = (
        execute(*FULL, "stage.max_steps=3", f"seed={seed}", folder=folder)
        for seed, folder in ((1, "first"), (1, "again"), (2, "other"))
    )
    assert first.losses == again.losses
    assert first.losses != other.losses


@pytest.mark.parametrize("method", [FULL, GALORE, LORA], ids=["full", "galore", "lora"])
def test_weight_decay_is_decoupled_and_of_matrices(method: tuple[str, ...], execute: Execute) -> None:
    """After one step: less by rate times decay times what the weights were before it."""
    rate, decay = 1e-3, 10.0
    decayed, plain = (
        execute(*method, "stage.max_steps=1", f"stage.weight_decay={value}", folder=f"{value}")
        for value in (decay, 0.0)
    )
    trained = {name: value for name, value in plain.model.named_parameters() if value.requires_grad}
    assert any(value.ndim == 1 for value in trained.values()) or method is LORA
    for name, value in trained.items():
        wanted = value - rate * decay * plain.start[name] if value.ndim >= 2 else value
        torch.testing.assert_close(decayed.model.get_parameter(name), wanted, rtol=0, atol=1e-6, msg=name)


def test_rope_is_scaled_by_the_exact_ratio(execute: Execute, tiny_model: Path) -> None:
    done = execute(*FULL, "stage=pt", "stage.max_steps=2", "data.max_length=300", "model.rope_scaling=linear")
    assert Fraction(done.run.plan.steps.patch.rope_factor) == Fraction(300, 256)
    assert max(len(row.ids) for row in done.dataset.train) == 300
    plain = fresh(tiny_model).model.rotary_emb.inv_freq
    torch.testing.assert_close(done.model.model.rotary_emb.inv_freq, plain / (300 / 256))
    saved = fresh(done.run.folder.model)
    assert torch.equal(saved.model.rotary_emb.inv_freq, done.model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("method", ["full", "freeze", "lora", "qlora"])
def test_checkpointed_activations_change_no_loss(method: str, execute: Execute) -> None:
    short = (f"method={method}", *PLAIN, "stage.max_steps=4", *(["method.num_layers=1"] if method == "freeze" else []))
    plain = execute(*short, folder="plain")
    recomputed = execute(*short, "compute.activation_checkpointing=true", folder="recomputed")
    assert recomputed.model.is_gradient_checkpointing
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)
    assert all(check["passed"] for check in recomputed.run.checks.values()), recomputed.run.checks


@pytest.mark.parametrize(("method", "precision"), diagonal(("full", "lora", "galore"), ("fp32", "bf16", "pure_bf16")))
def test_every_precision_learns_alike(method: str, precision: str, execute: Execute) -> None:
    rank = ["method.rank=8"] if method != "full" else []
    short = (f"method={method}", *PLAIN, *rank, "stage.max_steps=8", "stage.learning_rate=1e-2")
    exact = execute(*short, folder="exact")
    done = execute(*short, f"precision={precision}", folder="done")
    assert done.losses[0] == pytest.approx(exact.losses[0], rel=0.01)
    assert done.losses[-1] < done.losses[0]
    assert done.losses[-1] == pytest.approx(exact.losses[-1], rel=0.05)
    dtypes = {
        trains: {v.dtype for v in done.model.parameters() if v.requires_grad == trains} for trains in (True, False)
    }
    frozen = torch.float32 if precision == "fp32" else torch.bfloat16
    assert dtypes[True] == {torch.bfloat16 if precision == "pure_bf16" else torch.float32}
    assert dtypes[False] == ({frozen} if method == "lora" else set())
    if method != "lora":
        said = json.loads((done.run.folder.model / "config.json").read_text())["dtype"]
        saved = load_file(done.run.folder.model / "model.safetensors")
        assert {str(value.dtype) for value in saved.values()} == {f"torch.{said}"} == {str(frozen)}


@pytest.mark.parametrize("method", ["full", "galore", "badam", "badam_ratio", "lora_plus"])
def test_a_step_that_overflows_in_float16_moves_nothing(
    method: str, execute: Execute, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss's scale begins too high, and is halved after each step that overflows. (A GPU's plan on a CPU.)"""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    seen: list[tuple[bool, dict[str, torch.Tensor]]] = []
    original = Engine.clip

    def clip(engine: Engine) -> float:
        found = original(engine)
        seen.append((isfinite(found), {name: value.detach().clone() for name, value in engine.trained.items()}))
        return found

    monkeypatch.setattr(Engine, "clip", clip)
    monkeypatch.setattr("factory.steps.train.settle", lambda *_: None)  # after the last step weights are rounded
    base = ("hardware=cpu", "tracking=none", "evaluate.samples=0", f"model.path={tiny_model}")
    plan = compiled(*base, f"method={method}", *FITTING[method], *PLAIN, "precision=bf16", "stage.max_steps=14")
    steps = replace(plan.steps, train=replace(plan.steps.train, autocast="float16"))
    done = execute(plan=replace(plan, steps=steps))
    finite = [whole for whole, _ in seen]
    assert not finite[0] and sum(finite) > 2
    assert [line["grad_norm"] is not None for line in done.metrics] == finite
    after = [*(weights for _, weights in seen[1:]), dict(done.model.named_parameters())]
    for (whole, before), now in zip(seen, after, strict=True):
        assert any(not value.equal(now[name]) for name, value in before.items()) == whole
        assert all(value.isfinite().all() for value in now.values())
    assert done.run.checks["gradients_alive"]["passed"]


def test_eight_bit_adamw_keeps_eight_bits(execute: Execute) -> None:
    done = execute(
        *FULL, "stage.optimizer=adamw_8bit", "stage.max_steps=8", "stage.learning_rate=1e-2", "stage.save_steps=8"
    )
    assert done.losses[-1] < done.losses[0]
    state = torch.load(done.run.folder.checkpoint() / "optimizer.pt", weights_only=True)["state"]
    assert "torch.uint8" in str(tree_map(lambda value: getattr(value, "dtype", None), state))


@pytest.mark.parametrize("stage", ["pt", "sft"])
def test_perplexity_is_the_held_out_rows(stage: str, execute: Execute, tiny_model: Path) -> None:
    """exp of the mean surprise over the trained tokens of the held-out rows, in float64, before and after.

    A row longer than the model's context is read in pieces that share one token.
    """
    done = execute(*FULL, f"stage={stage}", "stage.max_steps=2", "evaluate.perplexity=true")
    rows, found = done.dataset.validation, done.result["evaluate"]
    lengths = [len(row.ids) for row in rows]
    assert len(rows) > 1 and (max(lengths) > CONTEXT) == (stage == "pt")
    for folder, name in ((tiny_model, "perplexity_before"), (done.run.folder.model, "perplexity")):
        pieces = [
            Example(row.ids[start : start + CONTEXT], row.labels[start : start + CONTEXT])
            for row, length in zip(rows, lengths, strict=True)
            for start in range(0, length - 1, CONTEXT - 1)
        ]
        with torch.no_grad():
            total = surprise(fresh(folder, torch.float64), pieces).item()
        assert found[name] == pytest.approx(exp(total / sum(row.trained for row in rows)), rel=1e-5)
        measured = evaluated.measures(done.run.folder.path)[name]
        assert evaluated.value(name, measured) == pytest.approx(found[name]) and len(measured) == len(rows)
    assert found["perplexity"] != found["perplexity_before"]


@pytest.mark.parametrize(("method", "stage"), diagonal(("full", "freeze", "lora", "qlora", "galore"), ("pt", "sft")))
def test_the_loss_falls(method: str, stage: str, execute: Execute) -> None:
    rank = ["method.rank=8"] if method in ("lora", "qlora", "galore") else []
    rate = "stage.learning_rate=3e-2" if method != "full" else "stage.learning_rate=1e-2"
    done = execute(
        f"method={method}",
        f"stage={stage}",
        *PLAIN,
        *rank,
        *(["method.num_layers=1"] if method == "freeze" else []),
        "stage.max_steps=20",
        rate,
        "evaluate.perplexity=true",
    )
    first, last = sum(done.losses[:3]) / 3, sum(done.losses[-3:]) / 3
    assert last < first
    assert done.result["evaluate"]["perplexity"] < done.result["evaluate"]["perplexity_before"]


def test_the_counts_add_up(execute: Execute) -> None:
    done = execute(*FULL, "data.max_samples=50", "data.max_length=190", "stage.num_epochs=2", "stage.batch_size=7")
    data, train = done.result["data"], done.result["train"]
    assert data["dropped"]["longer than max_length"] > 0
    assert (
        data["rows"] == 160 == data["used"] + data["validation"] + data["not_sampled"] + sum(data["dropped"].values())
    )
    assert data["used"] + data["validation"] == 50  # those that were drawn and can be trained
    rows = done.dataset.train
    assert (data["used"], data["tokens"]) == (len(rows), sum(len(row.ids) for row in rows))
    assert data["trained_tokens"] == sum(label != -100 for row in rows for label in row.labels)
    assert train["tokens"] == 2 * data["tokens"] == done.metrics[-1]["tokens"]
    assert train["steps"] == len(done.losses) == 2 * -(-len(rows) // 7)
    assert (train["epochs"], train["first_loss"], train["final_loss"]) == (2, done.losses[0], done.losses[-1])


def test_answers_are_the_models_own(execute: Execute, tiny_model: Path) -> None:
    done = execute(*FULL, "stage.max_steps=1", "evaluate.samples=2", "evaluate.max_new_tokens=8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert len(done.result["samples"]) == 2
    for (_, prompt, _), sample in zip(done.dataset.prompts, done.result["samples"], strict=True):
        for folder, name in ((tiny_model, "before"), (done.run.folder.model, "after")):
            ids = torch.tensor([prompt])
            given = fresh(folder).generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
            assert sample[name] == tokenizer.decode(given[0, len(prompt) :], skip_special_tokens=True)


def test_answers_are_greedy_whatever_the_models_own_file_says(execute: Execute, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    config = base / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 50.0}))
    words = (*FULL, "stage.max_steps=1", "evaluate.samples=2", "evaluate.max_new_tokens=8")
    plain, penalized = execute(*words, folder="plain"), execute(*words, f"model.path={base}", folder="penalized")
    assert penalized.result["samples"] == plain.result["samples"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_saved_model_is_the_one_in_memory(method: str, execute: Execute, tiny_model: Path) -> None:
    done = execute(f"method={method}", *PLAIN, *AS_TRANSFORMERS, "stage.max_steps=3", "stage.learning_rate=1e-2")
    if method == "full":
        again = fresh(done.run.folder.model)
    else:
        from peft import PeftModel

        again = PeftModel.from_pretrained(fresh(tiny_model), done.run.folder.model).eval()
    ids = torch.tensor([done.dataset.train[0].ids])
    with torch.no_grad():
        mine, theirs, before = (model(input_ids=ids).logits for model in (done.model, again, fresh(tiny_model)))
    torch.testing.assert_close(theirs, mine, rtol=0, atol=0 if method == "full" else 1e-5)
    assert not torch.allclose(mine, before, atol=1e-2)
    tokenizer, base = AutoTokenizer.from_pretrained(done.run.folder.model), AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.chat_template == base.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == (base.eos_token, base.pad_token)
    modes = {path.stat().st_mode for path in done.run.folder.model.iterdir()}
    assert modes == {(done.run.folder.model / "README.md").stat().st_mode}  # who may read one may read the weights
