"""Conversations to text through a chat template, with the places of every answer and of every text.

Two renderings, whatever the number of turns: one as it is, one with marks in the place of the texts that are not the
assistant's. Both must agree piece by piece, so nothing is searched for in what a user wrote. The second is seldom
needed: what a template puts around texts is mostly the same for all conversations of the same roles, and learnt once.
"""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from factory.data import tools as words
from factory.data.chat_template import ChatTemplate, Given, Learnt, PartsTemplate, called
from factory.data.record import MEDIA, BadRow, Medium, Message

Span = tuple[int, int]
_CHANGED = "the chat template changes a text, or what stands around it"
_LEFT_OUT = "the chat template leaves out a message"
# how a template may write a text; the first that fits
_VARIANTS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
)
_Stretch = tuple[int, int]  # the number of a message, and of a stretch of its text between media
_STEM = "Qz7m"
_PLAIN = {"role", "content"}
_MOST_SHAPES = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """Characters from `start` up to `end`, the end of turn included; not `closed`: the template puts none."""

    start: int
    end: int
    weight: float
    closed: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """`texts` are the system's, users' and tools' texts, in their order; `system` is the system's of them.

    `exchanges` are the places where a user's turn begins: what lies between the first of them and another can be taken
    away, and a shorter conversation is left. `media` are where the tokens of images, videos and sounds stand, once they
    are written out, in their order.
    """

    text: str
    answers: tuple[Answer, ...]
    texts: tuple[Span, ...]
    exchanges: tuple[int, ...]
    system: Span | None
    media: tuple[tuple[int, int, Medium], ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the text of message `index` stands, or a stretch of it between media."""

    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """A rendering without its texts: in which `order` they stand, and the `pieces` before, between and after them."""

    order: tuple[_Stretch, ...]
    pieces: tuple[str, ...]


class Renderer:
    """`special`: the tokenizer's named tokens (bos_token …); `specials`: the texts of all its special tokens.

    `reasoning`: template (as it does with an answer's reasoning), keep (a row where it leaves reasoning out is bad) or
    strip. `tools`: auto (by the template if it can, else in words of the default format) or one of `tools.FORMATS`.

    Of a conversation with `media` (kinds) the contents are given in parts to a template that has a place for them;
    others have the text `<image>` there, `<video>` or `<audio>`.
    """

    def __init__(self, template: str, special: Mapping[str, Any], specials: frozenset[str], reasoning: str, tools: str):
        self._made = template, special, specials, reasoning, tools
        self._broken: BadRow | None = None
        self._plain: _Form | None = None
        self._in_parts = dict[frozenset[str], _Form]()
        try:
            self._plain = _Form(ChatTemplate(template, special), *self._made[1:])
        except BadRow as error:
            self._broken = error  # the reason of every row, where it does not take parts either

    @cached_property
    def _takes(self) -> frozenset[str]:
        """The kinds of media that the template has a place for, where contents are parts."""
        try:
            return _Form(PartsTemplate(*self._made[:2], MEDIA.values()), *self._made[1:]).takes
        except BadRow:
            return frozenset()

    def _form(self, media: Iterable[str]) -> "_Form":
        """For a conversation with these kinds: the mark of another is a text in it."""
        kinds = self._takes.intersection(media) if media else frozenset[str]()
        if self._plain is not None and not kinds:
            return self._plain
        if self._plain is None and not self._takes:
            raise BadRow(str(self._broken))
        if kinds not in self._in_parts:
            self._in_parts[kinds] = _Form(PartsTemplate(*self._made[:2], sorted(kinds)), *self._made[1:])
        return self._in_parts[kinds]

    def given(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, media: Iterable[str] = ()
    ) -> tuple[list[Given], list[Given] | None]:
        """The messages and the tools as `apply_chat_template` takes them."""
        form = self._form(media)
        given, functions = form.given(*form.worded(messages, tools))
        return [{**message, "content": form.content(message["content"])} for message in given], functions

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, media: Iterable[str] = ()
    ) -> str:
        """The messages with what the model is given to answer the last. Raises BadRow."""
        return self._form(media).prompt(messages, tools)

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, media: Iterable[str] = ()
    ) -> Rendered:
        """Raises BadRow where the template refuses the conversation, or loses or changes a part of it."""
        return self._form(media).render(messages, tools)


class _Form:
    """One of the two forms of contents: as strings, or in parts."""

    def __init__(
        self,
        template: ChatTemplate,
        special: Mapping[str, Any],
        specials: frozenset[str],
        reasoning: str,
        tools: str,
    ):
        self._template, self._reasoning, self._tools = template, reasoning, tools
        self._learnt = Learnt(template, specials, special.get("eos_token") or "")
        self._parts = template if isinstance(template, PartsTemplate) else None
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of media that the template has a place for, where contents are parts."""
        return self._learnt.takes

    def content(self, text: str) -> Any:
        """As the template reads it."""
        return self._parts.parts(text) if self._parts else text

    def worded(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[Sequence[Message], Sequence[dict[str, Any]]]:
        """Tools, calls and results in words, where the template does not render them or a format is asked for."""
        if self._learnt.native and self._tools == "auto":
            return messages, tools
        if not tools and not any("tool_calls" in message or message["role"] == "tool" for message in messages):
            return messages, tools
        form = "default" if self._tools == "auto" else self._tools
        role = "tool" if self._learnt.results_apart else "user"
        return words.in_words(messages, tools, form, self._learnt.default_system, role), ()

    def given(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Given], list[Given] | None]:
        """Of messages in words."""
        calls = _Calls(self._learnt.arguments_as_text)
        functions = [{"type": "function", "function": tool} for tool in tools]
        return [self._given(message, calls) for message in messages], functions or None

    def _given(self, message: Message, calls: "_Calls") -> Given:
        given: Given = {"role": message["role"], "content": message["content"]}
        reasoning = message.get("reasoning", "")
        if reasoning and self._reasoning != "strip":
            given |= self._learnt.reasoned(message["content"], reasoning)
        if message.get("tool_calls"):
            given["tool_calls"] = calls.of(message)
        elif message["role"] == "tool":
            given |= calls.result(message)
        return given

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        given, functions = self.given(*self.worded(messages, tools))
        text = self._template(given, functions, answering=True)
        if any(each["role"] != "assistant" and not self._has(text, each["content"]) for each in given):
            raise BadRow(_LEFT_OUT)
        return text

    def _has(self, text: str, content: str) -> bool:
        stretches = self._parts.split(content)[::2] if self._parts else [content]
        return all(any(variant(each).strip() in text for variant in _VARIANTS) for each in stretches)

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Rendered:
        asked = [message for message in messages if message["role"] == "user"]
        messages, tools = self.worded(messages, tools)
        given, functions = self.given(messages, tools)
        whole = self._template(given, functions)
        # a user's message that is none of the user's tells of a tool's result
        results = {
            index for index, message in enumerate(messages) if message["role"] == "user" and message not in asked
        }
        places = self._places(given, functions, whole)
        answers = tuple(self._answers(messages, given, whole, places))
        system = [(place.start, place.end) for place in places if given[place.index]["role"] == "system"]
        return Rendered(
            text=whole,
            answers=answers,
            texts=tuple((place.start, place.end) for place in places),
            exchanges=tuple(_exchanges(given, results, places, answers)),
            system=system[0] if len(system) == 1 else None,
        )

    def _places(self, given: list[Given], tools: Any, whole: str) -> list[_Place]:
        """Of the texts that are not the assistant's."""
        if not tools and not self._parts and (places := self._by_shape(given, whole)):
            return places
        stem = _STEM
        while stem in whole:
            stem += "k"
        texts = [index for index, message in enumerate(given) if message["role"] != "assistant"]
        places = self._walk(given, tools, whole, stem, texts)
        if places is None:  # a system text that the template reads, an empty one that it leaves out
            texts = [index for index in texts if given[index]["role"] != "system" and given[index]["content"].strip()]
            places = self._walk(given, tools, whole, stem, texts)
        if places is None:
            raise BadRow(_CHANGED)
        return places

    def _by_shape(self, given: list[Given], whole: str) -> list[_Place] | None:
        """From what stands around the texts, the assistant's too, in any conversation of these roles.

        None where this one has something else there.
        """
        if any(message.keys() != _PLAIN for message in given):
            return None
        roles = tuple(message["role"] for message in given)
        if roles not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[roles] = self._shape(given)
        shape = self._shapes[roles]
        places = shape and _fitted(shape, {(index, 0): each["content"] for index, each in enumerate(given)}, whole)
        return places and [place for place in places if roles[place.index] != "assistant"]

    def _shape(self, given: list[Given]) -> _Shape | None:
        """None where a conversation of these roles has none, or a text could be mistaken for what is around it.

        A text that is written without its space cannot be, where no piece between two texts is all space.
        """
        try:
            shape, stretches = self._marked(given, None, _STEM, range(len(given)))
            complete = _each_once(shape.order, stretches, given)
        except BadRow:
            return None
        return shape if complete and all(map(str.strip, shape.pieces[1:-1])) else None

    def _walk(self, given: list[Given], tools: Any, whole: str, stem: str, texts: list[int]) -> list[_Place] | None:
        """Both renderings side by side; None where they part."""
        shape, stretches = self._marked(given, tools, stem, texts)
        return _fitted(shape, stretches, whole) if _each_once(shape.order, stretches, given) else None

    def _marked(
        self, given: list[Given], tools: Any, stem: str, texts: Sequence[int]
    ) -> tuple[_Shape, dict[_Stretch, str]]:
        """What is left of a rendering with marks in the place of these messages' texts, and the texts."""
        marked, stretches = list(given), dict[_Stretch, str]()
        for index in texts:
            text = given[index]["content"]
            split = self._parts.split(text) if self._parts else [text]
            # an empty text between two media is no part, the last one is
            for number in (each for each in range(0, len(split), 2) if split[each] or each == len(split) - 1):
                stretches[index, number] = split[number]
                split[number] = f"{stem}{index}n{number}q"
            marked[index] = {**given[index], "content": "".join(split)}
        parted = re.split(f"{stem}([0-9]+)n([0-9]+)q", self._template(marked, tools))
        order = ((int(index), int(number)) for index, number in zip(parted[1::3], parted[2::3], strict=True))
        return _Shape(tuple(order), tuple(parted[::3])), stretches

    def _answers(
        self, messages: Sequence[Message], given: list[Given], whole: str, places: list[_Place]
    ) -> Iterator[Answer]:
        """Each answer lies in the piece after the text before it."""
        ends = [*(place.start for place in places[1:]), len(whole)][: len(places)]
        pieces = {place.index: (place.end, end) for place, end in zip(places, ends, strict=True)}
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if index - 1 not in pieces:
                raise BadRow(_CHANGED)
            start, end = pieces[index - 1]
            piece = whole[start:end]
            opens = self._start(piece, given[index - 1])
            closes, closed = self._end(piece, opens, given[index], given[index + 1] if index + 1 < len(given) else None)
            self._check(piece[opens:closes], message)
            yield Answer(start + opens, start + closes, message.get("weight", 1.0), closed)

    def _start(self, piece: str, before: Given) -> int:
        opening = self._learnt.openings.get(before["role"])
        name, call = before.get("name", ""), before.get("tool_call_id", "")
        start = opening.end(piece, name, call) if opening else None
        if start is None:
            raise BadRow("the chat template opens an answer differently in its context")
        return start

    def _end(self, piece: str, start: int, answer: Given, after: Given | None) -> tuple[int, bool]:
        """Where the answer ends in its piece, and whether the template closes it."""
        calls, role = "tool_calls" in answer, after["role"] if after else None
        name, call = (after.get("name", ""), after.get("tool_call_id", "")) if after else ("", "")
        keys = [(calls, role), (not calls, role), (False, "user")] if after else [(calls, None)]
        for key in keys:
            closing = self._learnt.closings.get(key)
            end = closing.end(piece, start, name, call) if closing else None
            if closing and end is not None:
                return end, bool(closing.terminator)
        raise BadRow("the chat template closes an answer differently in its context")

    def _check(self, answer: str, message: Message) -> None:
        """Nothing of an answer is lost in silence."""
        if self._reasoning == "keep" and message.get("reasoning", "").strip() not in answer:
            raise BadRow("the chat template leaves out an answer's reasoning")
        if message["content"].strip() not in answer:
            raise BadRow("the chat template changes an answer")
        calls = message.get("tool_calls")
        if calls and any(answer.count(name) < count for name, count in Counter(call["name"] for call in calls).items()):
            raise BadRow("the chat template leaves out a tool call")


class _Calls:
    """Numbers the calls of a conversation, so that a result names the call that it answers."""

    def __init__(self, as_text: bool):
        self._as_text, self._count = as_text, 0
        self._open: list[tuple[str, str]] = []

    def of(self, message: Message) -> list[Given]:
        self._open = []
        made = list[Given]()
        for call in message.get("tool_calls", ()):
            self._open.append((f"call{self._count:05d}", call["name"]))
            self._count += 1
            made.append(called(call["name"], call["arguments"], self._open[-1][0], self._as_text))
        return made

    def result(self, message: Message) -> Given:
        """In the order of the calls; a result says its own name, or has its call's."""
        call, name = self._open.pop(0) if self._open else ("call00000", "")
        return {"name": message.get("name") or name, "tool_call_id": call}


def _fitted(shape: _Shape, stretches: Mapping[_Stretch, str], whole: str) -> list[_Place] | None:
    """Where the texts stand in a rendering that has this shape; None where it has another."""
    first, *pieces = shape.pieces
    if not whole.startswith(first):
        return None
    at, places = len(first), list[_Place]()
    for stretch, piece in zip(shape.order, pieces, strict=True):
        for variant in _VARIANTS:
            text = variant(stretches[stretch])
            end = at + len(text)
            if whole.startswith(text, at) and whole.startswith(piece, end):
                break
        else:
            return None
        places.append(_Place(stretch[0], at, end))
        at = end + len(piece)
    return places if at == len(whole) else None


def _each_once(order: Sequence[_Stretch], stretches: Mapping[_Stretch, str], given: list[Given]) -> bool:
    """Whether every text is there once and the turns are in order; a system text may stand anywhere."""
    missing = stretches.keys() - set(order)
    if missing:
        if any(stretches[stretch].strip() for stretch in missing):
            raise BadRow(_LEFT_OUT)
        return False
    turns = [stretch for stretch in order if given[stretch[0]]["role"] != "system"]
    return len(order) == len(stretches) and turns == sorted(turns)


def _exchanges(given: list[Given], results: set[int], places: list[_Place], answers: Sequence[Answer]) -> Iterator[int]:
    """The starts of the first user's text, and of the first text after each answer unless it is a tool's."""
    roles = ["tool" if place.index in results else given[place.index]["role"] for place in places]
    if "user" not in roles:
        return
    first, starts = roles.index("user"), [answer.start for answer in answers]
    yield places[first].start
    for (before, place), role in zip(pairwise(places[first:]), roles[first + 1 :], strict=True):
        if role != "tool" and bisect_left(starts, before.end) < bisect_left(starts, place.start):
            yield place.start
