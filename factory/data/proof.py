"""Proofs on the user's own rows: the text is the chat template's, and the trained tokens spell exactly the answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from unicodedata import normalize

from factory.data import formats, read
from factory.data.encoding import Encoder, EncoderSpec, media
from factory.data.images.expand import ids_as_processor
from factory.data.prepare import Prepared
from factory.data.prepare.store import Side
from factory.data.record import BadRow, Message, Record
from factory.data.render import Rendered, Renderer
from factory.data.stream import side_of
from factory.plan import Plan, PlannedSource

_ROWS = 50  # of each source
_SEEN = 5  # with images
_LOOKED = 1000  # rows of a source among which they are sought
Verdict = tuple[str, bool, str]


@dataclass(slots=True)
class _Found:
    rows: int = 0
    rendered: int = 0
    spelled: int = 0
    wrong: list[str] = field(default_factory=list)


def loss_mask(plan: Plan, sources: Mapping[str, Prepared], spec: EncoderSpec, tokenizer: Any) -> list[Verdict]:
    """Of the first rows of each source that were not cut, read and rendered anew: (check, passed, detail).

    The text is compared with the tokenizer's own `apply_chat_template`, the tokens in the cache, or of a stream those
    that it will give, with the answers of the records.
    """
    if spec.kind == "text":
        return []
    found, encoder = _Found(), spec.encoder
    for name, source in plan.steps.align.sources.items():
        rows = _in_cache(source, sources[name]) if name in sources else _as_they_come(source, encoder)
        for side, record in islice(rows, _ROWS):
            _look(found, record, side, encoder.renderer(record), spec, tokenizer)
    if not found.rows:
        return []
    detail = f"{found.rendered} of {found.rows} rows are rendered as the tokenizer's own apply_chat_template does"
    verdicts = [("template", found.rendered == found.rows, detail)]
    if not spec.pack.train_on_prompt:
        detail = f"in {found.spelled} of {found.rows} rows the trained tokens spell exactly the answer"
        verdicts.append(("loss_mask", found.spelled == found.rows, detail + "".join(found.wrong[:1])))
    return verdicts


def images(plan: Plan, sources: Mapping[str, Prepared], spec: EncoderSpec, tokenizer: Any) -> list[Verdict]:
    """Of the first rows with images of each source: their tokens are those that the processor makes of the same text.

    They are compared up to the last token of an image: of the text after it nothing depends on the processor.
    """
    if spec.images is None or spec.kind == "text":
        return []
    processor: Any = None
    encoder, rows, same = spec.encoder, 0, 0
    for name, prepared in sources.items():
        seen = (
            (place, record) for place, record in _records(plan.steps.align.sources[name], prepared) if record.images
        )
        for place, record in islice(seen, _SEEN):
            processor = processor or spec.images.processor_of(tokenizer)
            text = encoder.renderer(record).render([*record.prompt, *record.response], record.tools, images=True).text
            theirs, ours = ids_as_processor(processor, text, prepared.images(place)), prepared.side(place).ids.tolist()
            last = max(at for at, token in enumerate(ours) if token in processor.image_token_ids)
            rows, same = rows + 1, same + (ours[: last + 1] == theirs[: last + 1])
    if not rows:
        return []
    detail = f"in {same} of {rows} rows with images the tokens are those that the model's processor gives"
    return [("images_as_processor", same == rows, detail)]


def _records(source: PlannedSource, prepared: Prepared) -> Iterator[tuple[int, Record]]:
    """Rows that are in the cache whole, with their places there."""
    places = {int(row): place for place, row in enumerate(prepared.rows[:_LOOKED].tolist())}
    for number, row in enumerate(islice(read.source_rows(source), _LOOKED)):
        place = places.get(number)
        if place is not None and not prepared.cut[place]:
            yield place, formats.align(row, source.format, source.columns, source.tags)


def _in_cache(source: PlannedSource, prepared: Prepared) -> Iterator[tuple[Side, Record]]:
    return ((prepared.side(place), record) for place, record in _records(source, prepared))


def _as_they_come(source: PlannedSource, encoder: Encoder) -> Iterator[tuple[Side, Record]]:
    for row in islice(read.source_rows(source, streaming=True), _LOOKED):
        try:
            record = formats.align(row, source.format, source.columns, source.tags)
        except BadRow:
            continue
        (made,) = encoder.encode([record])
        if not isinstance(made, BadRow) and not made.tokens.cut:
            yield side_of(made.tokens), record


def _look(found: _Found, record: Record, side: Side, renderer: Renderer, spec: EncoderSpec, tokenizer: Any) -> None:
    found.rows += 1
    messages = [*record.prompt, *record.response]
    given, tools = renderer.given(messages, record.tools, images=media(record))
    rendered = renderer.render(messages, record.tools, images=media(record))
    found.rendered += rendered.text == tokenizer.apply_chat_template(given, tools=tools, tokenize=False)
    trained = [
        tokenizer.decode(side.ids[start:end].tolist(), clean_up_tokenization_spaces=False)
        for (start, end), weight in zip(side.spans.tolist(), side.weights.tolist(), strict=True)
        if weight > 0
    ]
    # some tokenizers compose accents before they split: the same text in another spelling
    spelled = [normalize("NFC", text) for text in trained]
    wanted = [normalize("NFC", text) for text in _answers(rendered, messages, spec, tokenizer)]
    if spelled == wanted:
        found.spelled += 1
    else:
        found.wrong.append(f"; {trained!r} are trained, {wanted!r} should be"[:500])


def _answers(rendered: Rendered, messages: list[Message], spec: EncoderSpec, tokenizer: Any) -> Iterator[str]:
    """The texts that should be trained, each beginning with what the record says."""
    turns = [message for message in messages if message["role"] == "assistant"]
    last_alone = spec.pack.mask_history or spec.kind != "messages"
    chosen = list(zip(rendered.answers, turns, strict=True))[-1 if last_alone else 0 :]
    for answer, message in chosen:
        text = rendered.text[answer.start : answer.end]
        assert message["content"].strip() in text
        if answer.weight > 0:
            end = tokenizer.eos_token if not answer.closed and answer is rendered.answers[-1] else ""
            yield text + end
