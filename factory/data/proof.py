"""Proofs on the user's own rows: the text is the chat template's, and the trained tokens spell exactly the answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any
from unicodedata import normalize

import numpy as np

from factory.data import formats, read
from factory.data.decoding import Decode, after, decoder
from factory.data.encoding import Encoder, EncoderSpec, Span
from factory.data.media.expand import ids_as_processor
from factory.data.packing import Integers
from factory.data.prepare import Prepared, aligning_of
from factory.data.prepare.store import Side
from factory.data.prepare.workers import record_of
from factory.data.record import BadRow, Message, Record, by_kind
from factory.data.render import Rendered
from factory.data.stream import side_of
from factory.plan.plan import DataSource, Plan

_ROWS = 50  # of each source
_SEEN = 5  # with media
_LOOKED = 1000  # rows of a source among which they are sought, where none are drawn
_NEAR = 20_000  # rows of a source among which they are drawn: those before them have to be read
Verdict = tuple[str, bool, str]


@dataclass(slots=True)
class _Found:
    rows: int = 0
    rendered: int = 0
    compared: int = 0
    spelled: int = 0
    wrong: list[str] = field(default_factory=list)


def loss_mask(plan: Plan, sources: Mapping[str, Prepared], spec: EncoderSpec, tokenizer: Any) -> list[Verdict]:
    """Of rows of each source that were not cut, drawn by the seed, read and rendered anew: (check, passed, detail).

    The text is compared with the tokenizer's own `apply_chat_template`, the tokens in the cache, or of a stream the
    first that it will give, with the answers of the records; where prompts are trained too, what is not trained as all
    else is with the answers that say so themselves.
    """
    if spec.kind == "text":
        return []
    found, encoder = _Found(), spec.encoder
    for name, source in plan.sources.items():
        rows = (
            _in_cache(source, sources[name], plan.settings.seed) if name in sources else _as_they_come(source, encoder)
        )
        for side, record in islice(rows, _ROWS):
            _look(found, record, side, spec, tokenizer)
    if not found.rows:
        return []
    detail = f"{found.rendered} of {found.rows} rows are rendered as the tokenizer's own apply_chat_template does"
    verdicts = [("template", found.rendered == found.rows, detail)]
    if found.compared:
        right = "all is trained but the answers that are marked otherwise"
        right = right if spec.pack.train_on_prompt else "the trained tokens spell exactly the answer"
        detail = f"in {found.spelled} of {found.compared} rows {right}" + "".join(found.wrong[:1])
        verdicts.append(("loss_mask", found.spelled == found.compared, detail))
    return verdicts


def media(plan: Plan, sources: Mapping[str, Prepared], spec: EncoderSpec, tokenizer: Any) -> list[Verdict]:
    """Of the first rows with media of each source: their tokens are those that the processor makes of the same text.

    They are compared up to the last token of a medium: of the text after it nothing depends on the processor.
    """
    if spec.processor is None or spec.kind == "text":
        return []
    processor: Any = None
    encoder, rows, same, kinds = spec.encoder, 0, 0, dict[str, Any]()
    for name, prepared in sources.items():
        rows_read = _records(plan.sources[name], prepared, _first(prepared))
        seen = ((place, record) for place, record in rows_read if record.media)
        for place, record in islice(seen, _SEEN):
            processor = processor or spec.processor.processor_of(tokenizer)
            text = (
                encoder.renderer(record)
                .render([*record.prompt, *record.response], record.tools, media=record.media)
                .text
            )
            shown = by_kind(prepared.media(place))
            kinds |= shown
            theirs, ours = ids_as_processor(processor, text, shown), prepared.side(place).ids.tolist()
            last = max(at for at, token in enumerate(ours) if token in processor.ids)
            rows, same = rows + 1, same + (ours[: last + 1] == theirs[: last + 1])
    if not rows:
        return []
    named = " and ".join(f"{kind}s" for kind in kinds)
    detail = f"in {same} of {rows} rows with {named} the tokens are those that the model's processor gives"
    return [("media_as_processor", same == rows, detail)]


def _records(source: DataSource, prepared: Prepared, places: Integers) -> Iterator[tuple[int, Record]]:
    """Rows of these places in the cache, in their order."""
    wanted = dict(zip(prepared.rows[places].tolist(), places.tolist(), strict=True))
    first, end = min(wanted, default=0), max(wanted, default=-1) + 1
    for number, row in enumerate(islice(read.source_rows(source, first), end - first), first):
        if number in wanted:
            yield wanted[number], formats.align(row, source.format, source.asked.columns, source.asked.tags)


def _first(prepared: Prepared) -> Integers:
    """Places of rows that are in the cache whole, of the source's first."""
    return np.flatnonzero((prepared.cut == 0) & (prepared.rows < _LOOKED))


def _drawn(source: DataSource, prepared: Prepared, seed: int) -> Integers:
    """Places of rows that are in the cache whole.

    A function has to be run for all rows before one, so of its rows the first are taken.
    """
    whole = np.flatnonzero((prepared.cut == 0) & (prepared.rows < _NEAR))
    if source.asked.origin == "function":
        return _first(prepared)
    return np.sort(np.random.default_rng(seed).permutation(whole)[:_ROWS])


def _in_cache(source: DataSource, prepared: Prepared, seed: int) -> Iterator[tuple[Side, Record]]:
    for place, record in _records(source, prepared, _drawn(source, prepared, seed)):
        yield prepared.side(place), record


def _as_they_come(source: DataSource, encoder: Encoder) -> Iterator[tuple[Side, Record]]:
    for row in islice(read.source_rows(source, streaming=True), _LOOKED):
        try:
            record = record_of(row, aligning_of(source))
        except BadRow:
            continue
        (made,) = encoder.encode([record])
        if not isinstance(made, BadRow) and not made.tokens.cut:
            yield side_of(made.tokens), record


def _look(found: _Found, record: Record, side: Side, spec: EncoderSpec, tokenizer: Any) -> None:
    found.rows += 1
    renderer = spec.encoder.renderer(record)
    if not record.response:
        given, tools = renderer.given(record.prompt, record.tools)
        text = tokenizer.apply_chat_template(given, tools=tools, tokenize=False, add_generation_prompt=True)
        found.rendered += renderer.prompt(record.prompt, record.tools) == text
        return
    messages = [*record.prompt, *record.response]
    given, tools = renderer.given(messages, record.tools, media=record.media)
    rendered = spec.encoder.rendered(record)[0]
    found.rendered += rendered.text == tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
    if spec.pack.train_on_prompt and record.media:
        return  # what is not trained of it are media, too
    found.compared += 1
    trained = _spelled(side, _other(side) if spec.pack.train_on_prompt else _trained(side), decoder(tokenizer))
    # some tokenizers compose accents before they split: the same text in another spelling
    spelled = [normalize("NFC", text) for text in trained]
    wanted = [normalize("NFC", text) for text in _answers(rendered, messages, spec, tokenizer)]
    if spelled == wanted:
        found.spelled += 1
    else:
        found.wrong.append(f"; there it is {trained!r} and should be {wanted!r}"[:500])


def _spelled(side: Side, stretches: list[Span], decode: Decode) -> list[str]:
    """Their texts, each after what lies between it and the one before."""
    ids, ends = side.ids.tolist(), [0, *(end for _, end in stretches)]
    return [after(decode, ids[last:start], ids[start:end]) for last, (start, end) in zip(ends, stretches, strict=False)]


def _trained(side: Side) -> list[Span]:
    """The stretches that count in the loss."""
    spans = zip(side.spans.tolist(), side.weights.tolist(), strict=True)
    return [(start, end) for (start, end), weight in spans if weight > 0]


def _other(side: Side) -> list[Span]:
    """The stretches that do not count 1."""
    weights = np.zeros(len(side.ids), np.float32)
    for (start, end), weight in zip(side.spans.tolist(), side.weights.tolist(), strict=True):
        weights[start:end] = weight
    borders = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(weights)]
    return [(start, end) for start, end in pairwise(borders) if weights[start] != 1]


def _answers(rendered: Rendered, messages: list[Message], spec: EncoderSpec, tokenizer: Any) -> Iterator[str]:
    """The texts that those stretches should be, each with what the record says."""
    turns = [message for message in messages if message["role"] == "assistant"]
    for answer, message in zip(rendered.answers, turns, strict=True):
        text = rendered.text[answer.start : answer.end]
        assert message["content"].strip() in text
        if answer.weight != 1 if spec.pack.train_on_prompt else answer.weight > 0:
            end = tokenizer.eos_token if not answer.closed and answer is rendered.answers[-1] else ""
            yield text + end
