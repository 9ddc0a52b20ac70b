"""Records to token ids with the stretches that are trained: found from the rendering, cut where they are too long."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from factory import templates
from factory.data import files
from factory.data.media import Expander, ProcessorSpec
from factory.data.media.expand import without
from factory.data.media.read import NAMED
from factory.data.placing import Fast, Placed, Slow, Texts
from factory.data.record import MEDIA, BadRow, Kind, Medium, Message, Record
from factory.data.render import Rendered, Renderer
from factory.data.truncate import Kept, Layout, kept, shifted
from factory.plan.plan import Compiled, Pack

Span = tuple[int, int]
Weighted = tuple[int, int, float]
_ANSWER = "It is one."
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": _ANSWER},
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """`spans` are trained: (start, end, weight). `cut` tokens were too many; `open_ended`: an answer's end too.

    `asked` is the text before the last answer, and `prompt` where that answer starts: 0 of a plain text.
    """

    ids: list[int]
    spans: list[Weighted]
    asked: Span = (0, 0)
    prompt: int = 0
    media: tuple[Medium, ...] = ()
    cut: int = 0
    open_ended: bool = False
    special: bool = False  # a text of the record spells one of the tokenizer's special tokens, and has become it


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A pair's `tokens` are the chosen answer's; both sides begin with the same prompt, up to their first span."""

    tokens: Tokens
    rejected: Tokens | None = None
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class _Side:
    """A conversation in tokens, before it is cut. `trained` are the answers that count, with their weights."""

    ids: list[int]
    trained: list[Weighted]
    layout: Layout
    media: tuple[tuple[int, int, Medium], ...] = ()
    asked: Span = (0, 0)
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends an answer: tokens, and the template's end where that is none, but a text that is spelled in pieces."""

    tokens: frozenset[int]
    text: str = ""

    def cut(self, answer: str) -> str:
        return answer.partition(self.text)[0] if self.text else answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding(Pack):
    """How rows become tokens."""

    template: str
    truncation: str
    train_on_prompt: bool
    mask_history: bool
    reasoning: str
    tools: str


def encoding_of(plan: Compiled) -> Encoding:
    data, pack = plan.settings.data, plan.steps.pack
    return Encoding(
        **{field.name: getattr(pack, field.name) for field in fields(Pack)},
        template=plan.settings.model.template,
        truncation=data.truncation,
        train_on_prompt=data.train_on_prompt,
        mask_history=data.mask_history,
        reasoning=data.reasoning,
        tools=data.tools,
    )


@dataclass(frozen=True)
class EncoderSpec:
    """All that an encoder is made of, in parts that can be sent to another process and hashed.

    `tokenizer` is a fast one's JSON; else `files` are a saved one's, by name, in base64. `special` are its named tokens
    as a chat template reads them, `specials` the texts of all its special tokens. `tool_template` is the chat template
    for conversations with tools, of a tokenizer that has one of its own for them. `processor`: of a model that takes
    more than text.
    """

    tokenizer: str | None
    files: dict[str, str]
    trust_remote_code: bool
    template: str
    tool_template: str
    special: dict[str, Any]
    specials: tuple[str, ...]
    eos: int
    pack: Encoding
    kind: Kind
    processor: ProcessorSpec | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "encoder"}

    @cached_property
    def encoder(self) -> "Encoder":
        """Made once in a process: a tokenizer's reading takes as long as 1,000 rows."""
        expander = None if self.processor is None else Expander(partial(self.processor.processor, self.tokenizer))
        made = Encoder(self._tokenizer(), self._renderers(), self.eos, self.pack, self.kind, expander)
        # places for images, videos and sounds are written as some models' own tokens for them
        marks = {f"<{kind}>" for kind in MEDIA.values()}
        if self.kind != "text" and (texts := [re.escape(text) for text in self.specials if text not in marks]):
            made.special = re.compile("|".join(texts))
        return made

    def _tokenizer(self) -> Any:
        if self.tokenizer is not None:
            made = Tokenizer.from_str(self.tokenizer)
            made.no_truncation()
            made.no_padding()
            return made
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            files.write(Path(folder), files.decoded(self.files))
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)

    def ends(self, tokenizer: Any) -> Ends:
        """The end of text, what the template names beside it, and what it writes after an answer."""
        added = tokenizer.added_tokens_encoder
        named = templates.stops(self.pack.template) if self.kind != "text" else ()
        tokens = frozenset({tokenizer.eos_token_id, *(added[text] for text in named if text in added)})
        if not (end := self._end()):
            return Ends(tokens)
        last = tokenizer(_ANSWER + end, add_special_tokens=False)["input_ids"][-1]
        if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder:
            return Ends(tokens | {last})
        return Ends(tokens, end.strip())

    def _end(self) -> str | None:
        """What the template writes after an answer; None where it ends none, or renders no conversation."""
        if (renderers := self._renderers()) is None:
            return None
        try:
            rendered = renderers[0].render(_PROBE)
        except BadRow:
            return None
        answer = rendered.answers[-1]
        return rendered.text[answer.start : answer.end].partition(_ANSWER)[2] if answer.closed else None

    def _renderers(self) -> tuple[Renderer, Renderer] | None:
        if self.kind == "text":
            return None
        made = {
            text: Renderer(text, self.special, frozenset(self.specials), self.pack.reasoning, self.pack.tools)
            for text in {self.template, self.tool_template}
        }
        return made[self.template], made[self.tool_template]


def spec_of(tokenizer: Any, pack: Encoding, kind: Kind, processor: ProcessorSpec | None = None) -> EncoderSpec:
    """Of a transformers tokenizer, with the tokens that were added to it and the chat template that it has now."""
    chats = kind != "text"
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return EncoderSpec(
        tokenizer=tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None,
        files={} if tokenizer.is_fast else files.saved(tokenizer),
        trust_remote_code=type(tokenizer).__module__.startswith("transformers_modules"),
        template=tokenizer.get_chat_template() if chats else "",
        tool_template=tokenizer.get_chat_template(tools=[{}]) if chats else "",
        special=dict(tokenizer.special_tokens_map),
        specials=tuple(sorted({*tokenizer.all_special_tokens, *added})),
        eos=tokenizer.eos_token_id,
        pack=pack,
        kind=kind,
        processor=processor,
    )


class Encoder:
    """Of one tokenizer: a `tokenizers.Tokenizer`, or one of transformers that is not fast.

    `renderers` are of conversations without tools and with them; none for plain texts. `media`: of a model that takes
    more than text.
    """

    def __init__(
        self,
        tokenizer: Any,
        renderers: tuple[Renderer, Renderer] | None,
        eos: int,
        pack: Encoding,
        kind: Kind,
        media: Expander | None,
    ):
        self._renderers, self._eos, self._pack, self._kind, self._media = renderers, eos, pack, kind, media
        self.special: re.Pattern[str] | None = None  # the special tokens' texts
        fast = isinstance(tokenizer, Tokenizer)
        self._texts: Texts = Fast(tokenizer, placed=kind != "text") if fast else Slow(tokenizer)

    def encode(self, records: list[Record]) -> list[EncodedRow | BadRow]:
        """A row, or why it is none, of each record. `TooLong` is why, where truncation=error."""
        if self._kind == "text":
            return self._documents(records)
        rendered = [self._rendered(record) for record in records]
        placed = iter(
            self._texts.encode([side.text for sides in rendered if isinstance(sides, list) for side in sides])
        )
        made = list[EncodedRow | BadRow]()
        for record, sides in zip(records, rendered, strict=True):
            if not isinstance(sides, list):
                made.append(sides)
                continue
            pieces = [next(placed) for _ in sides]
            try:
                made.append(self._row(record, sides, pieces))
            except BadRow as error:
                made.append(error)
        return made

    def prompt(self, record: Record, cut: str = "") -> list[int]:
        """What a model is given to answer; of a text, all of it. Raises BadRow.

        Where the character `cut` stands, it is taken away, and no token reaches over the place.
        """
        if self._kind == "text":
            return self._texts.documents([record.response[0]["content"]])[0]
        text = self._given(record)
        if cut and cut in text:
            return self._apart(text, cut)
        (placed,) = self._texts.encode([text])
        return placed.ids

    def _given(self, record: Record) -> str:
        """The text that is given to be answered, with the tokens of its media. Raises BadRow."""
        text = self.renderer(record).prompt(record.prompt, record.tools, media=record.media)
        return text if self._media is None else self._media.prompt(text, record.media)

    def answered(self, record: Record, cut: str = "") -> list[int]:
        """A conversation up to the end of its last answer, as in training. `cut` is as in `prompt`. Raises BadRow."""
        (whole,) = self._seen(record)
        if not cut or cut not in whole.text:
            (side,) = self._sides([whole], self._texts.encode([whole.text]))
            return side.ids[: side.trained[-1][1]]
        borders = sorted({at for answer in whole.answers for at in (answer.start, answer.end)})
        pieces = [whole.text[start:end] for start, end in pairwise([0, *borders])]
        ids = self._apart(cut.join(pieces), cut)
        return ids if whole.answers[-1].closed else [*ids, self._eos]

    def _apart(self, text: str, cut: str) -> list[int]:
        *parts, last = text.split(cut)
        return self._texts.pieces("".join([*parts, last]), [*accumulate(map(len, parts))]).ids

    def renderer(self, record: Record) -> Renderer:
        """What renders the record's conversation: a tokenizer may have a template of its own for tools."""
        assert self._renderers is not None
        return self._renderers[1 if record.tools else 0]

    def _documents(self, records: list[Record]) -> list[EncodedRow | BadRow]:
        """Plain texts, each closed by the end-of-text token and trained whole; packed ones are cut by the packer."""
        made = list[EncodedRow | BadRow]()
        for ids in self._texts.documents([record.response[0]["content"] for record in records]):
            if ids[-1:] != [self._eos]:
                ids.append(self._eos)
            try:
                made.append(EncodedRow(self._document(ids)))
            except BadRow as error:
                made.append(error)
        return made

    def _document(self, ids: list[int]) -> Tokens:
        size, truncation = len(ids), self._pack.truncation
        side = _Side(ids, [(0, size, 1.0)], Layout(size, [(0, size - 1)], [(0, size)], [0], lambda _: True))
        if self._pack.packing:
            return _cut(side, Kept(((0, size),)))
        # all of a text is the answer: none of it may be cut where answers stay whole
        return _cut(
            side, kept(side.layout, self._pack.max_length, {"keep_response": "drop"}.get(truncation, truncation))
        )

    def _rendered(self, record: Record) -> list[Rendered] | EncodedRow | BadRow:
        """To be tokenized with those of other records; of a prompt alone the row."""
        try:
            return self._seen(record) if record.response else self._asked(record)
        except BadRow as error:
            return error

    def _asked(self, record: Record) -> EncodedRow:
        """A prompt alone, as a model is given it to answer, then what rewards read of it, and the end of text.

        A template may have an empty answer otherwise than what comes before one, or have none. Raises BadRow.
        """
        self._check_media(record)
        text = self._given(record)
        (placed,) = self._texts.encode([text])
        # no model reads the solution
        whole, limit = Layout(len(placed.ids), (), (), (), placed.whole), self._pack.max_length
        kept(whole, limit, "error" if self._pack.truncation == "error" else "drop")  # it is asked whole or not
        ids = [*placed.ids, *(self._texts.encode([record.solution])[0].ids if record.solution else ()), self._eos]
        said = record.prompt[-1]["content"].strip()
        at = max(0, text.rfind(said))
        asked = _inside((at, at + len(said)), placed)
        special = self.special is not None and _spells(self.special, record)
        return EncodedRow(Tokens(ids, [(len(placed.ids), len(ids), 1.0)], asked, len(placed.ids), special=special))

    def rendered(self, record: Record) -> list[Rendered]:
        """One conversation, or a pair's two, without the tokens of media. Raises BadRow.

        Answers that are not trained have weight 0: before the last, or of the prompt, where others are judged.
        """
        sides = [record.response, record.rejected] if self._kind == "pairs" else [record.response]
        if self._kind != "messages" and any(each.get("weight", 1.0) != 1.0 for side in sides for each in side):
            raise BadRow("an answer that is judged has a weight of its own")
        renderer = self.renderer(record)
        rendered = [renderer.render([*record.prompt, *side], record.tools, media=record.media) for side in sides]
        if self._kind == "messages":
            (only,) = rendered
            return [_weighed(only, len(only.answers) - 1) if self._pack.mask_history else only]
        known = sum(message["role"] == "assistant" for message in record.prompt)
        return _same_prompt([_weighed(side, known) for side in rendered], known)

    def _seen(self, record: Record) -> list[Rendered]:
        """With the tokens of its media. Raises BadRow."""
        rendered = self.rendered(record)
        self._check_media(record)
        return rendered if self._media is None else [self._media.expand(each, record.media) for each in rendered]

    def _check_media(self, record: Record) -> None:
        """Raises BadRow where they cannot be shown: of rows that no plan saw."""
        if not record.media:
            return
        column = next(column for column, kind in MEDIA.items() if kind in record.media)
        if self._media is None:
            raise BadRow(f"it has {column}, and the model has no processor for them")
        blind = {
            "packed": self._pack.packing,
            "labelled": self._kind == "labelled",
            "prompts alone": not record.response,
        }
        if are := next((name for name, there in blind.items() if there), None):
            raise BadRow(f"it has {column}, and rows that are {are} show none")

    def _row(self, record: Record, rendered: list[Rendered], placed: Sequence[Placed]) -> EncodedRow:
        sides = self._sides(rendered, placed)
        stay = self._kept(sides)
        special = self.special is not None and _spells(self.special, record)
        tokens = [_cut(side, stays, special) for side, stays in zip(sides, stay, strict=True)]
        if len(tokens) == 2 and tokens[0].ids == tokens[1].ids:  # there is nothing to be learnt of the two
            as_cut = "" if sides[0].ids == sides[1].ids else " up to max_length"
            raise BadRow(f"chosen equals rejected{as_cut}")
        return EncodedRow(tokens[0], tokens[1] if len(tokens) == 2 else None, record.label)

    def _kept(self, sides: list[_Side]) -> list[Kept]:
        """What stays of a row; a pair's prompt loses the same on both sides."""
        limit, truncation = self._pack.max_length, self._pack.truncation
        if len(sides) == 1 or truncation == "right":  # which takes nothing of a prompt
            return [kept(side.layout, limit, truncation) for side in sides]
        longest = kept(max((side.layout for side in sides), key=lambda layout: layout.length), limit, truncation)
        *before, (start, _) = longest.stretches
        return [Kept((*before, (start, side.layout.length))) for side in sides]

    def _sides(self, rendered: list[Rendered], placed: Sequence[Placed]) -> list[_Side]:
        """The row's tokens. Where one would reach over a border, all of its texts are tokenized in pieces.

        So it is when the model answers, where the header is given as it stands.
        """
        for exchanges in (False, True):
            if sides := self._parted(rendered, placed):
                return sides
            placed = [self._texts.pieces(each.text, _cuts(each, exchanges=exchanges)) for each in rendered]
        sides = self._parted(rendered, placed)
        assert sides, "a token reaches over a cut"
        return sides

    def _parted(self, rendered: list[Rendered], placed: Sequence[Placed]) -> list[_Side]:
        """Empty where a token reaches over the border of an answer, of a pair's prompt, or of what may be cut away."""
        sides, clean = list[_Side](), True
        for each, tokens in zip(rendered, placed, strict=True):
            if (spans := self._spans(each, tokens)) is None:
                return []
            sides.append(self._side(each, tokens, spans))
            too_long = self._pack.truncation == "left" and len(sides[-1].ids) > self._pack.max_length
            clean = clean and not (too_long and not all(tokens.edge(at)[1] for at in each.exchanges))
        return sides if clean and _share_prompt(sides) else []

    def _side(self, rendered: Rendered, placed: Placed, spans: list[Weighted]) -> _Side:
        """`spans` are its answers, with their weights."""
        ids = placed.ids
        if not rendered.answers[-1].closed:  # the template ends no answer: the end-of-text token does
            start, end, weight = spans[-1]
            rest = ids[end:] if rendered.text[rendered.answers[-1].end :].strip() else []
            ids = [*ids[:end], self._eos, *rest]
            spans[-1] = (start, end + 1, weight)
        media = tuple((placed.edge(start)[0], placed.edge(end)[0], medium) for start, end, medium in rendered.media)
        trained = [span for span in spans if span[2]]
        if self._pack.train_on_prompt and self._kind == "messages":
            trained = _all_but([(start, end) for start, end, _ in media], spans, len(ids))
        layout, prompt = self._layout(rendered, placed, spans, len(ids)), spans[-1][0]
        before = [text for text in rendered.texts if text[1] <= rendered.answers[-1].start]
        return _Side(ids, trained, layout, media, _inside(before[-1], placed) if before else (0, 0), prompt)

    def _spans(self, rendered: Rendered, placed: Placed) -> list[Weighted] | None:
        """The answers in tokens, None where a token reaches over a border."""
        spans = list[Weighted]()
        for answer in rendered.answers:
            start, clean = placed.edge(answer.start)
            end, ended = placed.edge(answer.end)
            # an end-of-turn token may take the space after it with it
            if not clean or not (ended or placed.ids[end - 1] in self._texts.marks):
                return None
            spans.append((start, end, answer.weight))
        return spans

    def _layout(self, rendered: Rendered, placed: Placed, spans: list[Weighted], size: int) -> Layout:
        if size <= self._pack.max_length or self._pack.truncation in ("drop", "error"):
            return Layout(size, (), (), (), placed.whole)
        shared = len(rendered.text)
        if self._kind != "messages":  # of a pair, what both share
            shared = next((answer.start for answer in rendered.answers if answer.weight), shared)
        texts = {span: _inside(span, placed) for span in rendered.texts if span[1] <= shared}
        return Layout(
            length=size,
            texts=list(texts.values()),
            answers=[(start, end) for start, end, weight in spans if weight],
            exchanges=[placed.edge(at)[0] for at in rendered.exchanges if at <= shared],
            whole=placed.whole,
            system=texts.get(rendered.system) if rendered.system else None,
        )


def _spells(special: re.Pattern[str], record: Record) -> bool:
    messages = (*record.prompt, *record.response, *record.rejected)
    return any(map(special.search, (record.solution, *(message["content"] for message in messages))))


def _shown(side: _Side, stays: Kept) -> tuple[Medium, ...]:
    """The media that stay. Only the last ones may go, with all that was said of them."""
    stay = [any(first <= start and end <= last for first, last in stays.stretches) for start, end, _ in side.media]
    count, last = sum(stay), stays.stretches[-1][1]
    if not all(stay[:count]) or any(start < last for start, *_ in side.media[count:]):
        lost = next(medium for kept, (*_, medium) in zip(stay, side.media, strict=True) if not kept)
        raise BadRow(f"too long, and {NAMED[lost.kind]} would be lost")
    return tuple(medium for *_, medium in side.media[:count])


def _inside(span: Span, placed: Placed) -> Span:
    """The tokens that have nothing but this text."""
    (start, _), (end, clean) = placed.edge(span[0]), placed.edge(span[1])
    return start, max(start, end if clean else end - 1)


def _weighed(rendered: Rendered, known: int) -> Rendered:
    """The first `known` answers are context."""
    answers = (replace(each, weight=0.0) if number < known else each for number, each in enumerate(rendered.answers))
    return replace(rendered, answers=tuple(answers))


def _same_prompt(sides: list[Rendered], known: int) -> list[Rendered]:
    """Both answers begin where the first of them does, after the very same text.

    They differ where one has reasoning, and the template writes an empty block into the other.
    """
    if len(sides) == 1:
        return sides
    start = min(side.answers[known].start for side in sides)
    if len({side.text[:start] for side in sides}) > 1:
        raise BadRow("the chat template renders the prompt differently for the two answers")
    return [
        replace(
            side,
            answers=(*side.answers[:known], replace(side.answers[known], start=start), *side.answers[known + 1 :]),
        )
        for side in sides
    ]


def _all_but(media: Sequence[Span], spans: Sequence[Weighted], size: int) -> list[Weighted]:
    """All tokens but those of media; an answer that says its own weight keeps it."""
    own = [span for span in spans if span[2] != 1]
    rest = without([(0, size)], sorted([*media, *((start, end) for start, end, _ in own)]))
    return sorted([*((start, end, 1.0) for start, end in rest), *(span for span in own if span[2])])


def _cuts(rendered: Rendered, *, exchanges: bool) -> list[int]:
    answers = (at for answer in rendered.answers for at in (answer.start, answer.end))
    cuts = {*answers, *(rendered.exchanges if exchanges else ())}
    return sorted(cuts - {0, len(rendered.text)})


def _share_prompt(sides: list[_Side]) -> bool:
    prompts = [side.ids[: side.trained[0][0]] for side in sides if side.trained]
    return len(prompts) < 2 or prompts[0] == prompts[1]


def _cut(side: _Side, stays: Kept, special: bool = False) -> Tokens:
    ids, spans, asked, prompt = side.ids, side.trained, side.asked, side.prompt
    if stays.stretches != ((0, len(ids)),):
        ids = [token for start, end in stays.stretches for token in side.ids[start:end]]
        asked, prompt = _last(side, stays.stretches[-1][1])
        spans, prompt = shifted(spans, stays), _moved(prompt, stays)
        asked = _moved(asked[0], stays), _moved(asked[1], stays)
    if not any(end > max(start, 1) for start, end, _ in spans):  # the first token is predicted by nothing
        raise BadRow("no trained token")
    shown, cut = _shown(side, stays), len(side.ids) - len(ids)
    return Tokens(ids, spans, asked, prompt, shown, cut, stays.open_ended, special)


def _last(side: _Side, end: int) -> tuple[Span, int]:
    """The text before the last answer that begins before `end`, and where that answer does."""
    if side.prompt < end:
        return side.asked, side.prompt
    start = max(start for start, _ in side.layout.answers if start < end)
    return max((text for text in side.layout.texts if text[1] <= start), default=(0, 0)), start


def _moved(at: int, stays: Kept) -> int:
    """A place in what stays."""
    return sum(min(max(at - start, 0), end - start) for start, end in stays.stretches)
