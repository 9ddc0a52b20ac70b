"""Pack: encoded rows to the sequences that are trained and those that are held out, with the count of every row."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory import templates
from factory.config import registry
from factory.config.refusal import refuse
from factory.data import mix, proof
from factory.data.batches import examples
from factory.data.dataset import Example, Samples, dataset
from factory.data.encoding import Ends
from factory.data.media import Inputs
from factory.data.mix import Mixed
from factory.data.prepare.workers import Workers
from factory.data.record import Medium
from factory.data.stream import Stream
from factory.execute.context import Run
from factory.execute.report import mostly_dropped
from factory.plan import known
from factory.plan.plan import Pack, Plan, stage_keys
from factory.stages.rows import rows_per_step
from factory.steps.align import Aligned

_PROMPT_TOKENS = 24  # of a plain text, to be continued: its first half at most
_UNEVEN = 2.0  # times as much that a kind of labelled answers weighs
_SAME = "the validation set has the same row"


@dataclass(frozen=True, slots=True)
class Dataset:
    """`counts` is the report's `data`, its tokens those that train, or where nothing does those that are measured;
    `prompts` are of the rows that are measured, `validation` (held out, or all that train): what a person reads, its
    ids, and its media.

    A stream has no `train` that is known before: it gives samples while training, and its counts at the end.
    """

    train: Samples
    stream: Stream | None
    first: Example  # a sequence that is trained, or measured where none is
    validation: Samples
    prompts: list[tuple[str, list[int], tuple[Medium, ...]]]
    media: Inputs | None  # what makes the rows' images, videos and sounds a model's inputs
    pad: int
    ends: Ends  # what ends an answer, beside what the model's own file says
    counts: dict[str, Any]
    digest: str | None  # of the rows of an epoch, in their order; None: they are not known before
    notes: tuple[str, ...]  # what a person should know of the rows


def pack(run: Run, aligned: Aligned, tokenizer: Any) -> dict[str, Any]:
    found = packed(run.plan, aligned, tokenizer)
    counts = found.counts
    if found.stream is None:
        run.check("tokens_accounted", *rows_accounted(counts))  # where nothing is trained, this is all
    for look in (proof.loss_mask, proof.media):
        for name, passed, detail in look(run.plan, aligned.sources, aligned.spec, tokenizer):
            run.check(name, passed, detail)
    for note in found.notes:
        run.emit("note", text=note)
    _refuse_rollouts(run.plan, found.ends)
    every = run.plan.settings.stage.eval_steps
    if every is not None and not len(found.validation):
        raise refuse(
            "nothing-held-out",
            f"stage.eval_steps={every}",
            "no row is left to be held out",
            because="stage.eval_steps measures them while training",
            fix="give more rows or a larger data.validation_fraction, or set stage.eval_steps=null",
        )
    return {"dataset": found}


def _refuse_rollouts(plan: Plan, ends: Ends) -> None:
    if ends.text and registry.samples_answers(registry.spec("stages", plan.settings.stage.name)):
        wrong = f"it ends an answer with {ends.text}, which is no token of this tokenizer"
        raise refuse(
            "rollout-end",
            f"model.template={plan.settings.model.template}",
            wrong,
            because="it is spelled in pieces, so no sampled answer would end before stage.max_new_tokens",
            fix=f"set model.new_tokens=['{ends.text}'], or the template of this model (model.template=auto)",
        )


def packed(plan: Plan, aligned: Aligned, tokenizer: Any) -> Dataset:
    """The rows that are sampled, split, repeated and packed. Raises UserError where none is left."""
    pack, prompts = plan.steps.pack, plan.steps.evaluate.samples
    alone = replace(pack, packing=False)
    if plan.settings.data.streaming:
        return _streamed(plan, aligned, tokenizer, alone)
    settings = plan.settings
    mixed = mix.mix({name: found.digests for name, found in aligned.sources.items()}, settings.data, settings.seed)
    if not len(mixed.train) and (plan.verb != "evaluate" or not len(mixed.validation)):
        raise _nothing(aligned)
    train = dataset(aligned.sources, mixed.train, pack, aligned.spec.kind)
    measured = np.unique(mixed.train) if plan.settings.evaluate.rows == "train" else mixed.validation
    validation = dataset(aligned.sources, measured, alone, aligned.spec.kind)
    read = train if len(train) else validation  # nothing trains where a set is measured whole
    tokens = read.counts()
    if read is train:
        known.remember(plan, len(train), tokens["tokens"])
    counts = {**_rows(aligned, mixed), **tokens}
    filled = tokens["tokens"] / (len(train) * pack.max_length) if pack.packing and len(train) else None
    counts["packing_efficiency"] = None if filled is None else round(filled, 4)
    return Dataset(
        train=train,
        stream=None,
        first=examples(read[0])[0],
        validation=validation,
        prompts=_prompts(validation, prompts, tokenizer),
        media=_media(aligned, tokenizer),
        pad=tokenizer.pad_token_id,
        ends=aligned.spec.ends(tokenizer),
        counts=counts,
        digest=_digest(aligned, mixed),
        notes=tuple(_notes(plan, aligned, mixed, counts, tokenizer)),
    )


def _digest(aligned: Aligned, mixed: Mixed) -> str:
    """What else has been prepared beside what is trained depends on how many prepared it."""
    all_rows = np.concatenate([source.digests for source in aligned.sources.values()])
    return hashlib.sha256(all_rows[mixed.train].data).hexdigest()


def _streamed(plan: Plan, aligned: Aligned, tokenizer: Any, alone: Pack) -> Dataset:
    steps, name = plan.steps, plan.settings.data.validation
    held = aligned.sources[name] if name else None
    data, seed = plan.settings.data, plan.settings.seed
    stream = Stream(data, plan.sources, steps.pack, aligned.spec.kind, seed, Workers(aligned.spec, 1), held)
    validation: Samples = stream.validation
    if held is not None:
        validation = dataset(aligned.sources, np.arange(len(held)), alone, aligned.spec.kind)
    first, _ = next(stream.samples())
    return Dataset(
        train=(),
        stream=stream,
        first=examples(first)[0],
        validation=validation,
        prompts=_prompts(validation, steps.evaluate.samples, tokenizer),
        media=_media(aligned, tokenizer),
        pad=tokenizer.pad_token_id,
        ends=aligned.spec.ends(tokenizer),
        counts={},
        digest=None,
        notes=tuple(_lacking(plan, aligned, tokenizer)),
    )


def _media(aligned: Aligned, tokenizer: Any) -> Inputs | None:
    processor = aligned.spec.processor
    return None if processor is None else Inputs(partial(processor.processor_of, tokenizer))


def _notes(plan: Plan, aligned: Aligned, mixed: Mixed, counts: dict[str, Any], tokenizer: Any) -> Iterator[str]:
    yield from _lacking(plan, aligned, tokenizer)
    if dropped := mostly_dropped(counts):
        yield dropped
    if plan.verb == "train" and (few := _few_prompts(plan, len(mixed.train))):
        yield few
    if special := counts["special_in_text"]:
        have = "row has" if special == 1 else "rows have"
        yield f"{special:,} {have} the text of a special token in a message or solution, and it has become that token."
    if aligned.spec.kind == "labelled":
        labels = np.concatenate([found.labels for found in aligned.sources.values()])[mixed.train]
        if len(kinds := set(labels.tolist())) == 1:
            yield f"All labels are {'true' if 1 in kinds else 'false'}: nothing shows the model the other kind."
        elif uneven := _uneven(labels, stage_keys(plan)):
            yield uneven


def _few_prompts(plan: Plan, prompts: int) -> str | None:
    """Of a stage that samples, where there are fewer prompts than a step asks: none is asked twice in it."""
    answers, asked = stage_keys(plan).get("rollout_batch_size"), rows_per_step(plan)
    if answers is None or prompts >= asked:
        return None
    return (
        f"A step would ask {asked:,} prompts, and {prompts:,} are there: it samples {answers * prompts // asked:,} "
        f"answers, not the {answers:,} of stage.rollout_batch_size."
    )


def _uneven(labels: NDArray[np.int8], own: Mapping[str, Any]) -> str | None:
    """Of labelled answers, where those of one kind outweigh the others in the loss, with what would even them out.

    TRL 1.16's KTO, after Ethayarajh et al. 2024 (2402.01306): of weight times number the wanted have as much, up to a
    third more. What is less than twice as much is let be.
    """
    wanted = int((labels == 1).sum())
    unwanted = len(labels) - wanted
    weights = [own.get(name, 0.0) for name in ("desirable_weight", "undesirable_weight")]
    if not all(weights):  # of a stage of the user's own
        return None
    ratio = weights[0] * wanted / (weights[1] * unwanted)
    if _UNEVEN >= ratio >= 1 / _UNEVEN:
        return None
    return (
        f"{wanted:,} answers are wanted and {unwanted:,} are not: in the loss they weigh {ratio:.3g} to 1. From 1 "
        f"to 1.33 is advised: stage.undesirable_weight={weights[1] * ratio:.3g} or "
        f"stage.desirable_weight={weights[0] / ratio:.3g} makes it 1."
    )


def _lacking(plan: Plan, aligned: Aligned, tokenizer: Any) -> Iterator[str]:
    """A named template's end of turn that the tokenizer does not have is spelled in pieces."""
    name, vocabulary = plan.settings.model.template, tokenizer.get_vocab()
    named = () if aligned.spec.kind == "text" else templates.stops(name)
    lacking = [token for token in named if token not in vocabulary]
    if lacking:
        added = ",".join(f"'{token}'" for token in lacking)
        yield (
            f"The tokenizer has no token {' and no '.join(lacking)}, with which model.template={name} ends an answer: "
            f'it is spelled in pieces. "model.new_tokens=[{added}]" adds it.'
        )


def _rows(aligned: Aligned, mixed: Mixed) -> dict[str, Any]:
    """What became of every row: rows = used + validation + not_sampled + all that were dropped."""
    sources = aligned.sources.items()
    dropped = {name: dict(found.counts["dropped"]) for name, found in sources}
    reasons: dict[str, int] = {_SAME: mixed.contained} if mixed.contained else {}
    for entries in dropped.values():
        for reason, entry in entries.items():
            reasons[reason] = reasons.get(reason, 0) + entry["count"]
    return {
        "rows": sum(found.counts["rows"] for _, found in sources),
        "used": mixed.used,
        "validation": len(mixed.validation),
        "not_sampled": mixed.not_sampled + sum(found.counts["not_sampled"] for _, found in sources),
        "dropped": reasons,
        "dropped_rows": {name: entries for name, entries in dropped.items() if entries},
    }


def rows_accounted(counts: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether rows = used + validation + not_sampled + all that were dropped."""
    found = counts["used"] + counts["validation"] + counts["not_sampled"] + sum(counts["dropped"].values())
    return found == counts["rows"], f"{found:,} of {counts['rows']:,} rows are accounted for"


def _nothing(aligned: Aligned) -> Exception:
    rows = sum(found.counts["rows"] for found in aligned.sources.values())
    entries = (entry for found in aligned.sources.values() for entry in found.counts["dropped"].items())
    reasons = ", ".join(f"{reason}: {entry['count']:,} rows" for reason, entry in entries) or "all are held out"
    return refuse(
        "nothing-to-train",
        "data",
        f"no row is left of {rows:,}",
        because=f"all were dropped: {reasons}",
        fix=(
            "correct the rows; raise data.max_length where they are longer; set another model.template where "
            "it refuses, changes or leaves out what they say"
        ),
    )


def _prompts(samples: Samples, count: int, tokenizer: Any) -> list[tuple[str, list[int], tuple[Medium, ...]]]:
    """Conversations up to the last answer, which is to be given; the beginnings of plain texts, to be continued."""
    found = []
    for number in range(min(count, len(samples))):
        example = examples(samples[number])[0]
        prompt = example.ids[: example.prompt or min(_PROMPT_TOKENS, max(len(example.ids) // 2, 1))]
        shown = prompt[slice(*example.asked)] if example.prompt else prompt
        found.append((tokenizer.decode(shown, skip_special_tokens=True), prompt, example.media))
    return found
