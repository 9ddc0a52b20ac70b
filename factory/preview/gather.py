"""A compiled plan to its preview: the tokenizer is read, and the data steps run as they do in training."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from factory.config import registry
from factory.data import batches
from factory.data.dataset import IGNORED, Example, Sample
from factory.data.dataset import Dataset as Rows
from factory.data.prepare import Progress
from factory.data.record import Kind
from factory.data.stream import Position, Stream
from factory.plan.plan import Plan, use_of
from factory.preview import samples
from factory.preview.samples import Dropped, Origin, Preview
from factory.preview.samples import Reader as Tokens
from factory.stages.rows import samples_answers
from factory.steps.align import Aligned, aligned
from factory.steps.feed import total_steps
from factory.steps.pack import Dataset, packed


def preview(plan: Plan, rows: int, progress: Progress) -> Preview:
    """Raises UserError where the tokenizer or the data cannot be used."""
    tokenizer = read_tokenizer(plan)
    prepared = aligned(plan, tokenizer, progress, lambda: None, _processor(plan))
    dataset, tokens = packed(plan, prepared, tokenizer), samples.reader_of(tokenizer)
    if dataset.stream is not None:
        return _streamed(plan, dataset, rows, tokens)
    shown = islice(_origins(dataset), rows)
    data = {name: value for name, value in dataset.counts.items() if name != "dropped_rows"}
    return Preview(
        settings=_settings(plan),
        data=data | {"trained_tokens": 0} if samples_answers(plan) else data,
        dropped=tuple(_of_sources(dataset.counts)),
        lengths=samples.lengths(_lengths(prepared), plan.steps.pack.max_length),
        sequences=len(dataset.train),
        steps=total_steps(plan, dataset),
        samples=tuple(
            samples.sample(*_seen(plan, dataset.train[at], origins), tokens) for at, origins in enumerate(shown)
        ),
        notes=(*_notes(plan), *dataset.notes),
    )


def read_tokenizer(plan: Plan) -> Any:
    """As a run has it. That of a GGUF file is read from the file's header: no weight is."""
    from transformers.utils import logging

    from factory.steps import load, source
    from factory.steps.vocabulary import add_tokens

    logging.set_verbosity_error()
    asked = plan.steps.load
    with source.readable(asked, allow_pickle=plan.settings.model.allow_pickle), source.tokenizer_folder(asked) as path:
        tokenizer = load.read_tokenizer(
            path, asked.revision, plan.settings.model.trust_remote_code, plan.settings.model.template
        )
    load.check_template(plan, tokenizer)
    add_tokens(tokenizer, plan.settings.model.new_tokens)
    return tokenizer


def _processor(plan: Plan) -> dict[str, bytes]:
    """The files of its processor, of a model that takes more than text."""
    from transformers import CONFIG_MAPPING

    from factory.steps.load import read_processor
    from factory.steps.walk import multimodal

    asked = plan.steps.load
    kind = asked.config.get("model_type", "")
    more = kind in CONFIG_MAPPING and multimodal(CONFIG_MAPPING[kind])
    return read_processor(asked.path, asked.revision) if more else {}


def _settings(plan: Plan) -> dict[str, str]:
    """What the data are prepared for, in a person's words."""
    steps = plan.steps
    data = plan.options.get("data") or ", ".join(steps.align.sources)  # no option is the name of several sets
    found = {"data": data, "model": plan.options.get("model") or steps.load.path}
    for name, source in plan.sources.items():
        file = Path(source.path).name if source.asked.origin == "file" else source.path
        found[f"set {name}"] = f"{file}, {source.format}{use_of(plan.settings.data, name)}"
    template = plan.settings.model.template
    return found | {
        "stage": plan.settings.stage.name,
        "template": "the tokenizer's own" if template == "auto" else template,
        "max_length": f"{steps.pack.max_length:,} tokens; longer rows: {_longer(plan)}",
        "loss": _loss(plan),
    }


def _longer(plan: Plan) -> str:
    pack, kind = plan.steps.pack, registry.spec("stages", plan.settings.stage.name).KIND
    return "joined and cut, no token is lost" if pack.packing and kind == "text" else plan.settings.data.truncation


# what is trained of a record where nothing else is asked for
_TRAINED: dict[Kind, str] = {
    "text": "all tokens",
    "messages": "every answer",
    "pairs": "both answers",
    "labelled": "the answer that has the label",
}


def _loss(plan: Plan) -> str:
    pack, kind = plan.steps.pack, registry.spec("stages", plan.settings.stage.name).KIND
    if samples_answers(plan):
        return "on answers that are sampled while it trains; the rows give their prompts"
    trained, data = _TRAINED[kind], plan.settings.data
    if kind == "messages":
        trained = "all tokens" if data.train_on_prompt else "the last answer" if data.mask_history else trained
    if not pack.packing:
        return f"on {trained}; a row each"
    return f"on {trained}; packed{', documents isolated' if pack.isolate_documents else ''}"


def _seen(plan: Plan, found: Sample, origins: list[Origin]) -> tuple[Sample, list[Origin]]:
    """Of a row whose answer is sampled the prompt alone is of use, and nothing of it is trained."""
    if not samples_answers(plan) or not isinstance(found, Example):
        return found, origins
    ids = found.ids[: found.prompt]
    return replace(found, ids=ids, labels=[IGNORED] * len(ids), weights=None), [replace(origins[0], size=len(ids))]


def _notes(plan: Plan) -> tuple[str, ...]:
    return tuple(note for note in plan.notes if note.startswith("data."))


def _of_sources(counts: dict[str, Any]) -> Iterator[Dropped]:
    """By source, and what no source can tell: that the validation set has the same row."""
    told = Counter[str]()
    for name, reasons in counts["dropped_rows"].items():
        for each in _dropped(name, reasons):
            told[each.reason] += each.count
            yield each
    for reason, count in counts["dropped"].items():
        if count > told[reason]:
            yield Dropped(source=None, reason=reason, count=count - told[reason], first=())


def _dropped(source: str | None, reasons: dict[str, Any]) -> Iterator[Dropped]:
    for reason, entry in reasons.items():
        yield Dropped(source=source, reason=reason, count=entry["count"], first=tuple(entry["first"]))


def _lengths(prepared: Aligned) -> list[int]:
    """Tokens of every row that can be trained, of a pair those of its longer side."""
    sides = [np.maximum(found.lengths, found.rejected_lengths) for found in prepared.sources.values()]
    return np.concatenate([np.zeros(0, np.int64), *sides]).tolist()


def _origins(dataset: Dataset) -> Iterator[list[Origin]]:
    """Of each sequence the rows that it is made of, with their tokens."""
    assert isinstance(dataset.train, Rows)
    for number in range(len(dataset.train)):
        pieces = dataset.train.pieces(number)
        yield [Origin(size=tokens, source=source, row=row + 1) for source, row, tokens in pieces]


def _streamed(plan: Plan, dataset: Dataset, rows: int, tokens: Tokens) -> Preview:
    """What is known of a stream before it is trained: its first block."""
    assert dataset.stream is not None
    found, position = _block(dataset.stream)
    counts, pack = position.counts, plan.steps.pack
    dropped = counts["dropped"]
    full = len(found) * pack.max_length
    data = {name: counts[name] for name in ("rows", "used", "validation")} | {
        "not_sampled": 0,
        "dropped": {reason: entry["count"] for reason, entry in dropped.items()},
        **{name: counts[name] for name in ("truncated", "cut_tokens", "open_ended", "tokens", "trained_tokens")},
        "packing_efficiency": round(counts["tokens"] / full, 4) if pack.packing else None,
    }
    sizes = [max(len(each.ids) for each in batches.examples(sample)) for sample in found]
    shown = found[:rows]
    return Preview(
        settings=_settings(plan),
        data=data,
        dropped=tuple(_dropped(None, dropped)),
        lengths=samples.lengths(sizes, pack.max_length, "sequence" if pack.packing else "row"),
        sequences=len(found),
        steps=total_steps(plan, dataset),
        samples=tuple(samples.sample(each, _of_stream(each), tokens) for each in shown),
        notes=(f"data.streaming: this is the first block, of {counts['rows']:,} rows", *_notes(plan), *dataset.notes),
    )


def _block(stream: Stream) -> tuple[list[Sample], Position]:
    """A stream's first block, and the position after it."""
    found = list[Sample]()
    for sample, position in stream.samples():
        found.append(sample)
        if position.sequence == 0:
            return found, position
    raise AssertionError("a stream has no end")


def _of_stream(sample: Sample) -> list[Origin]:
    example = batches.examples(sample)[0]
    return [Origin(size=size) for size in example.documents or (len(example.ids),)]
