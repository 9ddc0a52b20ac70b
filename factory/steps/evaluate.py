"""Evaluate: perplexity of the held-out rows and a few answers, the same before and after training."""

from math import exp
from typing import Any

from factory import registry
from factory.data import batches
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.steps.pack import Dataset

_HEAD_TOKENS = 64  # of one row: enough to see whether the logits are the model's
_HEAD_ROUNDING = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.1}  # nats that one token's loss may differ by


def before(run: Run, model: Any, tokenizer: Any, dataset: Dataset) -> dict[str, Any]:
    """Measured once: a resumed run takes it from its checkpoint."""
    if run.resume_from is not None:
        return {"before": checkpoint.state_of(run.resume_from)["before"]}
    _check_head(run, model, dataset)
    return {"before": _measure(run, model, tokenizer, dataset, "baseline")}


def after(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, before: dict[str, Any], trained: dict[str, Any]
) -> dict[str, Any]:
    now = _measure(run, model, tokenizer, dataset, "evaluate")
    evaluate = {f"{name}_before": before[name] for name in ("perplexity",) if name in before} | {
        name: now[name] for name in ("perplexity",) if name in now
    }
    samples = [
        {"prompt": old["prompt"], "before": old["answer"], "after": new["answer"]}
        for old, new in zip(before["samples"], now["samples"], strict=True)
    ]
    return {"result": {"train": trained, "evaluate": evaluate, "samples": samples, "data": dataset.counts}}


def _measure(run: Run, model: Any, tokenizer: Any, dataset: Dataset, name: str) -> dict[str, Any]:
    plan = run.plan.steps.evaluate
    model.eval()
    found: dict[str, Any] = {
        "samples": [_answer(run, model, tokenizer, dataset, *prompt) for prompt in dataset.prompts]
    }
    if plan.perplexity and not dataset.validation:
        run.emit("note", text="No held-out row is left: perplexity is not measured.")
    elif plan.perplexity:
        found["perplexity"] = _perplexity(run, model, dataset, name)
    return found


def _perplexity(run: Run, model: Any, dataset: Dataset, name: str) -> float:
    """exp of the mean negative log-likelihood over all trained tokens of the held-out rows, each row a context."""
    import torch

    plan, device, size = run.plan.steps.train, run.plan.steps.load.device, run.plan.steps.evaluate.batch_size
    stage = registry.run("stages", plan.stage)
    ordered = sorted(dataset.validation, key=lambda example: len(example.ids))
    total, tokens = 0.0, sum(example.trained for example in ordered)
    with torch.no_grad():
        for start in range(0, len(ordered), size):
            run.stop_if_asked()
            batch = batches.collate(ordered[start : start + size], dataset.pad, device)
            with torch.autocast(device, getattr(torch, plan.autocast or "float32"), enabled=plan.autocast is not None):
                total += float(stage.loss(model, batch))
            run.progress(name, min(start + size, len(ordered)), len(ordered))
    return exp(total / tokens)


def _answer(run: Run, model: Any, tokenizer: Any, dataset: Dataset, text: str, prompt: list[int]) -> dict[str, str]:
    """The greedy answer to a prompt."""
    import torch

    from factory.losses import text_model

    run.stop_if_asked()
    device, autocast = run.plan.steps.load.device, run.plan.steps.train.autocast
    ids = torch.tensor([prompt], device=device)
    with torch.no_grad(), torch.autocast(device, getattr(torch, autocast or "float32"), enabled=autocast is not None):
        given = text_model(model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=run.plan.steps.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=dataset.stops,
        )
    answer = given[0, ids.shape[1] :]
    return {"prompt": text, "answer": tokenizer.decode(answer, skip_special_tokens=True)}


def _check_head(run: Run, model: Any, dataset: Dataset) -> None:
    """The losses take logits at trained positions alone, by a formula of the head: they must be the model's own."""
    import torch

    from factory.losses import heads_agree

    plan = run.plan.steps
    ids = dataset.train[0].ids[:_HEAD_TOKENS]
    tokens = torch.tensor([ids], device=plan.load.device)
    with torch.autocast(
        plan.load.device, getattr(torch, plan.train.autocast or "float32"), enabled=plan.train.autocast is not None
    ):
        apart = heads_agree(model, {"input_ids": tokens, "labels": tokens})
    allowed = _HEAD_ROUNDING[plan.train.autocast or plan.load.dtype]
    run.check("logits_as_model", apart <= allowed, f"losses of single tokens differ by {apart:.2g} nats at most")
