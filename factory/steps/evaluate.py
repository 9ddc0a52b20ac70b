"""Evaluate: perplexity of the held-out rows and a few answers, the same before and after training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from math import isfinite
from typing import Any, TypeVar

from factory.config import registry
from factory.data import batches
from factory.data.dataset import Dataset as Rows
from factory.data.dataset import Samples
from factory.data.record import Medium
from factory.estimate.speed import precision
from factory.evaluation import rows
from factory.evaluation.spec import not_finite
from factory.evaluation.windows import part, windows
from factory.execute import checkpoint
from factory.execute.context import Run
from factory.plan.heads import writes
from factory.plan.plan import stage_keys
from factory.stages.loss import Watched, over_ranks
from factory.stages.rows import unit
from factory.steps.feed import autocast, collating
from factory.steps.isolation import check_isolation
from factory.steps.kernels import multiplying_as_trained
from factory.steps.pack import Dataset
from factory.steps.reference import Reference

Item = TypeVar("Item")
Made = TypeVar("Made")
_HEAD_TOKENS = 64  # of one row: enough to see whether the logits are the model's
TOKEN_ROUNDING = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.1}  # nats that one token's loss may differ by


def before(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, reference: Reference | None, reward: Any
) -> dict[str, Any]:
    """Measured once: a resumed run takes it from its checkpoint."""
    if run.resume_from is not None:
        return {"before": checkpoint.state_of(run.resume_from)["before"]}
    _check_head(run, model, dataset)
    shares = run.plan.steps.pack.isolate_documents or run.plan.steps.pack.padding_free
    if shares and run.plan.settings.checks != "none":
        check_isolation(run, model, dataset)
    return {"before": _measure(run, model, tokenizer, dataset, reference, reward, "baseline")}


def after(
    run: Run,
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    reference: Reference | None,
    reward: Any,
    before: dict[str, Any],
    trained: dict[str, Any],
) -> dict[str, Any]:
    now = _measure(run, model, tokenizer, dataset, reference, reward, "evaluate")
    evaluate = {f"{name}_before": value for name, value in before.items() if name != "samples"}
    evaluate |= {name: value for name, value in now.items() if name != "samples"}
    samples = [
        {"prompt": old["prompt"], "before": old["answer"], "after": new["answer"]}
        for old, new in zip(before["samples"], now["samples"], strict=True)
    ]
    return {
        "measured": {"train": trained["summary"], "evaluate": evaluate, "samples": samples, "data": trained["data"]}
    }


def only(run: Run, model: Any, tokenizer: Any, dataset: Dataset) -> dict[str, Any]:
    """Of a model that is not trained here."""
    _check_head(run, model, dataset)
    found = _measure(run, model, tokenizer, dataset, None, None, "evaluate")
    samples = [{"prompt": each["prompt"], "after": each["answer"]} for each in found.pop("samples")]
    rows_read = {
        "count": len(dataset.validation) if run.plan.settings.evaluate.perplexity else 0,
        "set": run.plan.settings.data.validation,
    }
    return {"measured": {"evaluate": found, "samples": samples, "data": dataset.counts, "measured_rows": rows_read}}


def _measure(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, reference: Reference | None, reward: Any, name: str
) -> dict[str, Any]:
    plan = run.plan.settings.evaluate
    model.eval()
    found: dict[str, Any] = {
        "samples": [_answer(run, model, tokenizer, dataset, *prompt) for prompt in dataset.prompts]
    }
    if plan.perplexity and not dataset.validation:
        run.emit("note", text="No held-out row is left: nothing is measured on them.")
    elif plan.perplexity:
        measured = held_out(run, model, dataset, reference, reward, name)
        broken = {what: value for what, value in measured.items() if not isfinite(value)}
        if broken:
            what, value = next(iter(broken.items()))
            raise not_finite(f"step={name}", f"{what} of the held-out rows is {value}")
        # where there is one, it says all
        found |= {"perplexity": measured["perplexity"]} if "perplexity" in measured else measured
    return found


def held_out(
    run: Run, model: Any, dataset: Dataset, reference: Reference | None, reward: Any, name: str
) -> dict[str, float]:
    """What the stage measures of the held-out rows, or their losses. `name` is told as what is going on."""
    own = registry.hook(registry.run("stages", run.plan.settings.stage.name), "measure")
    return own(run, model, dataset, reward, name) if own else _losses(run, model, dataset, reference, name)


def _losses(run: Run, model: Any, dataset: Dataset, reference: Reference | None, name: str) -> dict[str, float]:
    """The mean loss of the held-out rows, and the means of what the stage watches. Draws no random number.

    Over all their trained tokens, with its exponential, the perplexity; of a stage that judges whole answers over the
    rows.
    """
    if unit(run.plan) == "tokens":
        loss = _of_tokens(run, model, dataset, name)
        return {"loss": loss, "perplexity": rows.perplexity(loss)}
    if reference is not None:  # it was measured so
        multiplying_as_trained(model)
    of = None if reference is None else reference.of
    collate = collating(run, dataset, of, padding_free=run.plan.steps.pack.padding_free)
    stage, total, watched = registry.run("stages", run.plan.settings.stage.name), 0.0, Watched()
    held = dataset.validation
    with _batches(run, range(len(held)), name, lambda some: collate([held[row] for row in some])) as made:
        for batch, counts in made:
            loss, metrics = _called(run, lambda batch=batch: stage.loss(model, batch, stage_keys(run.plan)).parts())
            if counts:
                total += float(loss)
                watched.add(metrics)
    total, watched = over_ranks(run.world, total, watched)
    return {"loss": total / len(held), **watched.means()}


_KEPT = {"baseline": rows.PERPLEXITY_BEFORE, "evaluate": rows.PERPLEXITY}  # not of evaluations while training


def _of_tokens(run: Run, model: Any, dataset: Dataset, name: str) -> float:
    """The mean over all trained tokens of the held-out rows, each once and by its weight, in nats.

    A row is a context; one that is longer than data.max_length is read in windows. What each row adds is kept. Rows are
    read as their turn comes: they may be all that train.
    """
    from factory.losses import row_losses

    plan, held = run.plan.steps, dataset.validation
    collate = collating(run, dataset, padding_free=plan.pack.padding_free)
    length, stride = plan.pack.max_length, plan.evaluate.stride
    read = lru_cache(run.plan.settings.evaluate.batch_size)(lambda row: batches.examples(held[row])[0])
    places = [(row, window) for row, size in enumerate(_sizes(held)) for window in windows(size, length, stride)]
    places.sort(key=lambda place: place[1][1] - place[1][0])  # what stands beside a row changes nothing
    found = list[tuple[int, float, float]]()

    def make(some: Sequence[Any]) -> tuple[list[tuple[int, float]], dict[str, Any]]:
        parts = [part(read(row), window) for row, window in some]
        return [(row, each.trained) for (row, _), each in zip(some, parts, strict=True)], collate(parts)

    with _batches(run, places, name, make) as made:
        for (told, batch), counts in made:
            losses = _called(run, partial(row_losses, model, batch)).tolist()
            if counts:
                found += [(row, loss, trained) for (row, trained), loss in zip(told, losses, strict=True)]
    nats = [0.0] * len(held)
    tokens: list[float] = [0] * len(held)
    for row, loss, trained in chain.from_iterable(run.world.gathered(found)):
        nats[row] += loss
        tokens[row] += trained
    if name in _KEPT and run.world.leads and all(map(isfinite, nats)):
        each = zip(rows.ids(held), nats, tokens, strict=True)
        kept = [{"id": row, "scores": {"nats": loss, "tokens": count}} for row, loss, count in each]
        rows.write(run.folder.evaluation / f"{_KEPT[name]}.jsonl", kept)
    return sum(nats) / sum(tokens)


def _sizes(held: Samples) -> list[int]:
    """Tokens of each row, without reading it where it lies prepared."""
    if isinstance(held, Rows):
        return held.lengths.tolist()
    return [len(batches.examples(held[row])[0].ids) for row in range(len(held))]


@contextmanager
def _batches(
    run: Run, samples: Sequence[Item], name: str, make: Callable[[Sequence[Item]], Made]
) -> Iterator[Iterator[tuple[Made, bool]]]:
    """Give an iterator over this rank's batches, made ahead in a thread, and whether each counts.

    One that is there so that all ranks have equally many does not count.
    """
    size = run.plan.settings.evaluate.batch_size
    starts, idle = run.world.share(range(0, len(samples), size))

    def counted(made: Iterator[Made]) -> Iterator[tuple[Made, bool]]:
        for number, batch in enumerate(made, start=1):
            run.stop_if_asked()
            yield batch, number <= len(starts) - idle
            run.progress(name, number, len(starts))

    with batches.Prefetcher(make(samples[start : start + size]) for start in starts) as made:
        yield counted(made)


def _called(run: Run, function: Callable[[], Any]) -> Any:
    import torch

    with torch.no_grad(), autocast(run.plan):
        return run.way.call(function)


def _answer(
    run: Run, model: Any, tokenizer: Any, dataset: Dataset, text: str, prompt: list[int], shown: tuple[Medium, ...]
) -> dict[str, str]:
    """The greedy answer to a prompt, as long as was asked for or as the context has room for."""
    from factory.rollouts.sample import Sampling, sample

    run.stop_if_asked()
    steps = run.plan.steps
    room = steps.patch.reach - len(prompt)
    sampling = Sampling(min(run.plan.settings.evaluate.max_new_tokens, room), greedy=True)
    options = {"pad": dataset.pad, "stops": dataset.ends.tokens, "device": steps.load.device, "call": run.way.call}
    options["beside"] = None if dataset.media is None else partial(dataset.media, [shown])
    with autocast(run.plan):
        (given,) = sample(model, [prompt], sampling, **options)
    answer = dataset.ends.cut(tokenizer.decode(given.said, skip_special_tokens=True))
    return {"prompt": text, "answer": answer}


def _check_head(run: Run, model: Any, dataset: Dataset) -> None:
    """The losses take logits at trained positions alone, by a formula of the head: they must be the model's own."""
    import torch

    from factory.losses import heads_agree

    plan = run.plan.steps
    if run.plan.settings.checks == "none" or not writes(run.plan.settings.stage.name):
        return
    ids = dataset.first.ids[:_HEAD_TOKENS]
    tokens = torch.tensor([ids], device=plan.load.device)
    with torch.no_grad(), autocast(run.plan):
        apart = run.way.call(partial(heads_agree, model, {"input_ids": tokens, "labels": tokens}))
    allowed = TOKEN_ROUNDING[precision(run.plan)]
    run.check("logits_as_model", apart <= allowed, f"losses of single tokens differ by {apart:.2g} nats at most")
