"""A compiled plan to its preview: the tokenizer is read, and the data steps run as they do in training."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from factory import registry, schedules
from factory.data import batches, mix
from factory.data import dataset as datasets
from factory.data.dataset import Example, Pair, Sample
from factory.data.record import Kind
from factory.data.stream import Position, Stream
from factory.plan import Plan
from factory.preview import samples
from factory.preview.samples import Dropped, Origin, Preview
from factory.preview.samples import Reader as Tokens
from factory.stages.rows import rows_per_step
from factory.steps.align import Aligned, aligned
from factory.steps.pack import Dataset, packed

Progress = Callable[[int, int | None], None]


def preview(plan: Plan, rows: int, progress: Progress) -> Preview:
    """Raises UserError where the tokenizer or the data cannot be used."""
    tokenizer = read_tokenizer(plan)
    prepared = aligned(plan, tokenizer, progress, lambda: None, _processor(plan))
    dataset, tokens = packed(plan, prepared, tokenizer), samples.reader_of(tokenizer)
    if dataset.stream is not None:
        return _streamed(plan, dataset.stream, rows, tokens)
    sequences = len(dataset.train)
    shown = islice(_origins(plan, prepared, dataset), rows)
    return Preview(
        settings=_settings(plan),
        data={name: value for name, value in dataset.counts.items() if name != "dropped_rows"},
        dropped=tuple(_of_sources(dataset.counts)),
        lengths=samples.lengths(_lengths(prepared), plan.steps.pack.max_length),
        sequences=sequences,
        steps=_steps(plan, sequences),
        samples=tuple(samples.sample(dataset.train[at], origins, tokens) for at, origins in enumerate(shown)),
        notes=(*_notes(plan), *dataset.notes),
    )


def read_tokenizer(plan: Plan) -> Any:
    """As a run has it. That of a GGUF file is read from the file's header: no weight is."""
    from transformers.utils import logging

    from factory.steps import load, source
    from factory.steps.vocabulary import add_tokens

    logging.set_verbosity_error()
    asked = plan.steps.load
    with source.readable(asked), source.tokenizer_folder(asked) as path:
        tokenizer = load.read_tokenizer(path, asked.revision, asked.trust_remote_code, plan.steps.pack.template)
    add_tokens(tokenizer, plan.steps.patch.new_tokens)
    return tokenizer


def _processor(plan: Plan) -> dict[str, bytes]:
    """The files of its processor, of a model that sees."""
    from transformers import CONFIG_MAPPING

    from factory.steps.load import read_processor
    from factory.steps.walk import sees

    asked = plan.steps.load
    kind = asked.config.get("model_type", "")
    seeing = kind in CONFIG_MAPPING and sees(CONFIG_MAPPING[kind]())
    return read_processor(asked.path, asked.revision) if seeing else {}


def _settings(plan: Plan) -> dict[str, str]:
    """What the data are prepared for, in a person's words."""
    steps = plan.steps
    found = {"data": plan.options.get("data", ""), "model": plan.options.get("model") or steps.load.path}
    for name, source in steps.align.sources.items():
        found[f"set {name}"] = f"{Path(source.path).name if source.origin == 'file' else source.path}, {source.format}"
    return found | {
        "stage": steps.train.stage,
        "template": "the tokenizer's own" if steps.pack.template == "auto" else steps.pack.template,
        "max_length": f"{steps.pack.max_length:,} tokens; longer rows: {steps.pack.truncation}",
        "loss": _loss(plan),
    }


# what is trained of a record where nothing else is asked for
_TRAINED: dict[Kind, str] = {
    "text": "all tokens",
    "messages": "every answer",
    "pairs": "both answers",
    "labelled": "the answer that has the label",
}


def _loss(plan: Plan) -> str:
    pack, kind = plan.steps.pack, registry.spec("stages", plan.steps.train.stage).KIND
    trained = _TRAINED[kind]
    if kind == "messages":
        trained = "all tokens" if pack.train_on_prompt else "the last answer" if pack.mask_history else trained
    if not pack.packing:
        return f"on {trained}; a row each"
    return f"on {trained}; packed{', documents isolated' if pack.isolate_documents else ''}"


def _notes(plan: Plan) -> tuple[str, ...]:
    return tuple(note for note in plan.notes if note.startswith("data."))


def _steps(plan: Plan, sequences: int) -> int:
    train = plan.steps.train
    return schedules.total_steps(sequences, rows_per_step(train), 1, train.num_epochs, train.max_steps)


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


def _origins(plan: Plan, prepared: Aligned, dataset: Dataset) -> Iterator[list[Origin]]:
    """Of each sequence the rows that it is made of, with their tokens."""
    train, pack = dataset.train, plan.steps.pack
    assert isinstance(train, datasets.Dataset)
    apart = train
    if pack.packing and not pack.isolate_documents:
        # the same pieces, as a set that tells where each ends
        rows = mix.mix({name: found.digests for name, found in prepared.sources.items()}, plan.steps.align, plan.seed)
        parted = replace(pack, isolate_documents=True)
        apart = datasets.dataset(prepared.sources, rows.train, parted, prepared.spec.kind)
    for number in range(len(train)):
        sizes = _first(apart[number]).documents or (len(_first(train[number]).ids),)
        places = train.origins(number)
        yield [Origin(size=size, source=source, row=row + 1) for size, (source, row) in zip(sizes, places, strict=True)]


def _first(sample: Sample) -> Example:
    """The sequence, of a pair the chosen one."""
    return sample.chosen if isinstance(sample, Pair) else batches.examples(sample)[0]


def _streamed(plan: Plan, stream: Stream, rows: int, tokens: Tokens) -> Preview:
    """What is known of a stream before it is trained: its first block."""
    found, position = _block(stream)
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
        lengths=samples.lengths(sizes, pack.max_length),
        sequences=len(found),
        steps=_steps(plan, len(found)),  # a stream's are given
        samples=tuple(samples.sample(each, _of_stream(each), tokens) for each in shown),
        notes=(f"data.streaming: this is the first block, of {counts['rows']:,} rows", *_notes(plan)),
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
    example = _first(sample)
    return [Origin(size=size) for size in example.documents or (len(example.ids),)]
