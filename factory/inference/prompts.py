"""Messages to the tokens that training saw for the same messages: rendered and tokenized by the data worker's encoder.

One thing differs. In training the text of a special token in a message becomes that token, and the row is counted; what
a client sends must never end a turn or begin one, so here it stays a text.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from factory.architecture import FAMILIES, traits_of
from factory.architecture.traits import TEXT_APART
from factory.config.refusal import UserError
from factory.data.encoding import Encoder, EncoderSpec, Encoding, Ends, spec_of
from factory.data.media import Inputs, ProcessorSpec
from factory.data.record import BadRow, Medium, Message, Record
from factory.data.tools import FORMATS, ToolFormat, bare

_MARKS = [chr(code) for code in range(0xE000, 0xE100)]  # for private use: no template and hardly a text has one
_MEDIA = re.compile(r"<(?=(?:image|video|audio)>)")
_PROBE = "What is it?"
_ENDLESS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """`<image>` in a content stands where the next of `images` belongs, if it is one of `places` (message, character).

    Any other is a client's text.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    places: frozenset[tuple[int, int]] = frozenset()


class Prompts:
    """Of one tokenizer, as the plan's `pack` says. `chats`: whether it has a chat template."""

    def __init__(self, tokenizer: Any, pack: Encoding, processor: ProcessorSpec | None, more_stops: Sequence[int] = ()):
        # data.max_length is of rows: the context alone limits what is asked here
        self.tokenizer, self._processor = tokenizer, processor
        self._pack = replace(pack, packing=False, max_length=_ENDLESS)
        self.chats = bool(tokenizer.chat_template)
        self._more_stops = more_stops

    @cached_property
    def _spec(self) -> EncoderSpec:
        return spec_of(self.tokenizer, self._pack, "messages", self._processor)

    @cached_property
    def _plain_spec(self) -> EncoderSpec:
        return spec_of(self.tokenizer, self._pack, "text")

    @property
    def _plain(self) -> Encoder:
        return self._plain_spec.encoder

    @cached_property
    def media(self) -> Inputs | None:
        processor = self._processor
        return None if processor is None else Inputs(lambda: processor.processor_of(self.tokenizer))

    @cached_property
    def sees(self) -> bool:
        """Whether the model takes images. Of a kind without a closed form its processor has to be asked."""
        if self._processor is None or self.media is None:
            return False
        kind = self._processor.kind
        if kind in FAMILIES:
            return "images" in traits_of(kind).media and kind not in TEXT_APART
        try:
            return "image" in self.media.processor.tokens
        except UserError:  # a text is served without it
            return False

    def chat(self, conversation: Conversation) -> list[int]:
        """What the model is given to answer. Raises BadRow with what the chat template does not take."""
        mark = _mark(conversation)
        return self._spec.encoder.prompt(self._guarded(conversation, mark), mark)

    def text(self, text: str) -> list[int]:
        """A text that goes on, with what the tokenizer puts before one: its special tokens are tokens."""
        return self._plain.prompt(Record(prompt=(), response=({"role": "assistant", "content": text},)))

    @cached_property
    def _word(self) -> tuple[list[int], str]:
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return ids, self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def spelled(self, token: int) -> str:
        """A token's text after a word: alone, one of SentencePiece would lose its space."""
        ids, text = self._word
        return self.tokenizer.decode([*ids, token], clean_up_tokenization_spaces=False)[len(text) :]

    def answered(self, conversation: Conversation) -> list[int]:
        """A conversation up to the end of its last answer, as a reward model reads it. Raises BadRow."""
        mark = _mark(conversation)
        record = self._guarded(conversation, mark)
        *before, last = record.prompt
        return self._spec.encoder.answered(replace(record, prompt=tuple(before), response=(last,)), mark)

    def inputs(self, ids: Sequence[int], images: Sequence[str]) -> dict[str, Any]:
        """The tensors that the model takes beside the ids of a prompt with images."""
        import numpy as np

        if not images or self.media is None:
            return {}
        return self.media([tuple(Medium("image", place) for place in images)], np.array([list(ids)]))

    @cached_property
    def _ends(self) -> Ends:
        """What ends an answer in training."""
        return (self._spec if self.chats else self._plain_spec).ends(self.tokenizer)

    @cached_property
    def stops(self) -> frozenset[int]:
        """Tokens that end an answer: training's own, and the model's."""
        return self._ends.tokens.union(self._more_stops)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that do, of a template whose end of turn is no token."""
        return (self._ends.text,) if self._ends.text else ()

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How this model's calls read; None where its own way is none that is known."""
        if not self.chats:
            return None
        if self._pack.tools != "auto":
            return FORMATS[self._pack.tools]
        call = {"name": "look_up", "arguments": {"key": "one"}}
        tool = {"name": "look_up", "description": "Looks it up.", "parameters": {"type": "object", "properties": {}}}
        asked: Message = {"role": "user", "content": _PROBE}
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [call]}  # type: ignore[list-item]
        record = Record(prompt=(asked,), response=(answer,), tools=(tool,))
        try:
            rendered = self._spec.encoder.renderer(record).render([asked, answer], (tool,))
        except BadRow:
            return None
        last = rendered.answers[-1]
        text = rendered.text[last.start : last.end]
        for ending in sorted(self._spec.specials, key=len, reverse=True):
            text = text.rstrip().removesuffix(ending)
        return next((form for form in FORMATS.values() if form.parse(text) == [call]), None)

    def _guarded(self, conversation: Conversation, mark: str) -> Record:
        """With a mark within each special token's text, at which it is cut in two."""
        special = self._spec.encoder.special

        def guard(text: str) -> str:
            if special is not None:
                text = special.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", text)
            return text

        messages = list[Message]()
        for number, message in enumerate(conversation.messages):
            places = {at for index, at in conversation.places if index == number}
            made: Message = {**message, "content": guard(_without_media(message["content"], places, mark))}
            if "reasoning" in made:
                made["reasoning"] = guard(made["reasoning"])
            if "name" in made:
                made["name"] = guard(made["name"])
            if "tool_calls" in made:
                made["tool_calls"] = _each_text(made["tool_calls"], guard)
            messages.append(made)
        tools = tuple(_each_text(bare(tool), guard) for tool in conversation.tools)
        return replace(_record(conversation), prompt=tuple(messages), tools=tools)


def _mark(conversation: Conversation) -> str:
    """A character that none of its texts has."""
    record = _record(conversation)
    texts = json.dumps([*record.prompt, *record.tools], ensure_ascii=False)
    if found := next((each for each in _MARKS if each not in texts), None):
        return found
    raise BadRow("the texts have too many private-use characters")


def _record(conversation: Conversation) -> Record:
    tools = tuple(bare(tool) for tool in conversation.tools)
    return Record(prompt=conversation.messages, response=(), tools=tools, images=conversation.images)


def _without_media(text: str, places: set[int], mark: str) -> str:
    """Of places for images, those that a client only wrote."""
    return _MEDIA.sub(lambda found: "<" if found.start() in places else f"<{mark}", text)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Changes every text in it, names too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): _each_text(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return value
