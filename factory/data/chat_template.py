"""A chat template as transformers compiles it, and what a few probes tell of it: how answers open and close."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError

from factory.data.record import MEDIA, BadRow
from factory.data.sandbox import sandbox

Given = dict[str, Any]  # a message as a chat template reads it
_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError)
_REASON_LENGTH = 120
# words that stand in no template; an id has nine letters and digits, as Mistral's templates want it
_USER, _ANSWER, _NEXT, _LAST, _THOUGHT, _VALUE, _TOOL = (f"qz{name}x" for name in ("u", "a", "n", "l", "t", "v", "d"))
PROBE_NAME, PROBE_ID = "qzfx", "qzidx0000"
_EMPTY_REASONING = re.compile(r"\s*<think>\s*</think>\s*")


@lru_cache(maxsize=16)
def _code(source: str) -> CodeType:
    """Compiled once for all of a run who render by it. Raises what jinja and Python do."""
    return sandbox().compile(source)


class ChatTemplate:
    """`special` are the tokenizer's named tokens (bos_token, eos_token …), which templates read as variables."""

    def __init__(self, source: str, special: Mapping[str, Any]):
        try:
            code = _code(source)
        except TemplateError as error:
            raise _refused(error) from None
        except (*_FAILURES, SyntaxError) as error:  # nested deeper than Python reads
            raise BadRow(f"the chat template cannot be compiled ({type(error).__name__})") from None
        # a mapping that is no dict is copied slowly for every rendering
        self._compiled = Template.from_code(sandbox(), code, {**sandbox().make_globals(None), **special})

    def __call__(self, messages: Sequence[Given], tools: Any = None, *, answering: bool = False) -> str:
        """The text; `answering`: with what the model is given to answer. Raises BadRow where the template refuses."""
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": answering}
        try:
            sandbox().begin()
            text = self._compiled.render(given)
            text.encode()  # half of a surrogate pair would break the tokenizer
            return text
        except TemplateError as error:
            raise _refused(error) from None
        except _FAILURES as error:
            raise BadRow(f"the chat template fails with {type(error).__name__}") from None


class PartsTemplate(ChatTemplate):
    """For templates that take a content as a list of parts, as those of models that see do.

    A content's mark of one of the `kinds`, as `<image>`, becomes a part; a text part is the last, an empty one if need
    be.
    """

    def __init__(self, source: str, special: Mapping[str, Any], kinds: Iterable[str]):
        super().__init__(source, special)
        self._mark = re.compile(f"(<(?:{'|'.join(kinds) or '(?!)'})>)")

    def __call__(self, messages: Sequence[Given], tools: Any = None, *, answering: bool = False) -> str:
        parted = [{**message, "content": self.parts(message["content"])} for message in messages]
        return super().__call__(parted, tools, answering=answering)

    def split(self, content: str) -> list[str]:
        """Texts, and between each two of them what is no text."""
        return self._mark.split(content)

    def parts(self, content: str) -> list[dict[str, str]]:
        """The content as parts: texts, and what is no text."""
        made = [
            {"type": each[1:-1]} if number % 2 else {"type": "text", "text": each}
            for number, each in enumerate(self.split(content))
        ]
        return [part for part in made[:-1] if part.get("text") != ""] + made[-1:]


def _refused(error: TemplateError) -> BadRow:
    return BadRow(f"the chat template refuses it: {str(error)[:_REASON_LENGTH]}")


@dataclass(frozen=True, slots=True)
class Opening:
    """What stands between a text and its answer.

    `prompt` is what the model is given to answer; after it `unfilled`, the empty block of an answer without reasoning.
    `headers`, longest first, are what else stands there.
    """

    prompt: str
    unfilled: str
    headers: tuple[str, ...]

    def end(self, piece: str, name: str, call: str) -> int | None:
        """Where the answer begins in the piece that opens so; None where it opens otherwise."""
        prompt = _named(self.prompt, name, call)
        if piece.startswith(prompt):
            return len(prompt) + (len(self.unfilled) if piece.startswith(self.unfilled, len(prompt)) else 0)
        headers = (_named(header, name, call) for header in self.headers)
        return next((len(header) for header in headers if piece.startswith(header)), None)


@dataclass(frozen=True, slots=True)
class Closing:
    """What stands between an answer and the next text, or the end: `gap` begins with the `terminator`, "" if none."""

    terminator: str
    gap: str

    def end(self, piece: str, start: int, name: str, call: str) -> int | None:
        """Where the answer ends, its terminator included."""
        gap = _named(self.gap, name, call)
        if piece.endswith(gap) and len(piece) - len(gap) >= start:
            return len(piece) - len(gap) + len(self.terminator)
        if not self.terminator:
            return None
        at = len(piece)
        for _ in range(1 + self.gap.count(self.terminator, len(self.terminator))):
            at = piece.rfind(self.terminator, start, at)
            if at < 0:
                return None
        return at + len(self.terminator)


def _named(text: str, name: str, call: str) -> str:
    return text.replace(PROBE_NAME, name).replace(PROBE_ID, call)


def called(name: str, arguments: dict[str, Any], call: str, as_text: bool) -> Given:
    """A call in the structure of OpenAI's API. Some templates want its arguments as JSON text."""
    given = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return {"id": call, "type": "function", "function": {"name": name, "arguments": given}}


def _user(content: str) -> Given:
    return {"role": "user", "content": content}


def _assistant(content: str, **more: Any) -> Given:
    return {"role": "assistant", "content": content, **more}


def _as_field(content: str, reasoning: str) -> Given:
    """Under the names that templates read."""
    return {"content": content, "reasoning_content": reasoning, "thinking": reasoning, "reasoning": reasoning}


def _as_text(content: str, reasoning: str) -> Given:
    """As most models that reason write it."""
    return {"content": f"<think>\n{reasoning}\n</think>\n\n{content}"}


def _left_out(content: str, reasoning: str) -> Given:
    return {"content": content}


Reasoned = Callable[[str, str], Given]  # an answer's keys from its content and its reasoning


class Learnt:
    """What probes tell of a template. Raises BadRow where it does not take the simplest conversation.

    `reasoned` gives an answer with reasoning as the template shows it, left out where it never does. `native`: it
    renders tools, calls and their results. `results_apart`: it has a turn for results that is not the user's.
    `default_system` is what it says where there is no system message. `takes` are the kinds of media that it has a
    place for, where they are parts of a content.
    """

    def __init__(self, template: ChatTemplate, specials: frozenset[str], eos: str):
        self._render, self._eos = template, eos
        longest = sorted(filter(None, specials), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self.reasoned = self._learn_reasoning()
        self.openings = {"user": self._opening([_user(_USER)], _USER)}
        self.closings = self._plain_closings()
        self.arguments_as_text = self.results_apart = False
        self.native = self._learn_calls()
        if not self.native:
            self._learn_results([_user(_USER), _assistant(_LAST)])
        self.default_system = self._default_system()
        self.takes = frozenset(kind for kind in MEDIA.values() if self._takes(kind))

    def _takes(self, kind: str) -> bool:
        try:
            text = self._render([_user(f"<{kind}>{_USER}")])
        except BadRow:
            return False
        spelled_out = "'type'" in text  # a list where it looks for a text
        return _USER in text and text != self._render([_user(_USER)]) and not spelled_out

    def _default_system(self) -> str:
        """What stands in the place of a system text, between what stands around it."""
        try:
            told = self._render([{"role": "system", "content": _NEXT}, _user(_USER)])
        except BadRow:
            return ""
        before, _, after = told.partition(_NEXT)
        text = self._render([_user(_USER)])
        default = text[len(before) : len(text) - len(after)]
        return default if after and text == before + default + after else ""

    def _learn_reasoning(self) -> Reasoned:
        shown = (
            ways for ways in (_as_field, _as_text) if _THOUGHT in self._render([_user(_USER), self._thinking(ways)])
        )
        return next(shown, _left_out)

    def _thinking(self, reasoned: Reasoned) -> Given:
        return {"role": "assistant", **reasoned(_ANSWER, _THOUGHT)}

    def _opening(self, context: list[Given], text: str) -> Opening:
        """How an answer opens after this text, the last of the context."""
        asked, idle = (_after(self._render(context, answering=answering), text) for answering in (True, False))
        last = _between(self._render([*context, _assistant(_ANSWER)]), text, _ANSWER)
        turns = [_assistant(_ANSWER), _user(_NEXT), _assistant(_LAST)]
        middle = _between(self._render([*context, *turns]), text, _ANSWER)
        if asked == idle and last.startswith(asked) and last[len(asked) :].strip():
            asked = last  # it has no generation prompt: what it puts before every answer is the next best
        reasoned = _after(self._render([*context, self._thinking(self.reasoned)]), text)
        before = reasoned.partition(_THOUGHT)[0] if _THOUGHT in reasoned else last
        after = _between(reasoned, _THOUGHT, _ANSWER) if _THOUGHT in reasoned else ""
        unfilled = last.removeprefix(asked) if last.startswith(asked) else ""
        if not _EMPTY_REASONING.fullmatch(unfilled) and _squeezed(asked + unfilled) != _squeezed(before + after):
            unfilled = ""  # the model writes it: no block that has room for reasoning
        headers = sorted({last, middle, before}, key=len, reverse=True)
        return Opening(asked, unfilled, tuple(headers))

    def _plain_closings(self) -> dict[tuple[bool, str | None], Closing]:
        turns = [_user(_USER), _assistant(_ANSWER)]
        tail = _after(self._render(turns), _ANSWER)
        gap = _between(self._render([*turns, _user(_NEXT), _assistant(_LAST)]), _ANSWER, _NEXT)
        last = self._terminator(tail) or tail.rstrip()
        return {(False, None): Closing(last, tail), (False, "user"): Closing(self._inner(gap, last), gap)}

    def _terminator(self, text: str) -> str:
        """Up to and including the first special token, or the end of text that follows it; "" where there is none."""
        found = self._special.search(text)
        if not found:
            return ""
        end = found.end()
        while self._eos and not text.endswith(self._eos, 0, end):
            if not (after := self._special.match(text, end)):
                return text[: found.end()]
            end = after.end()
        return text[:end]

    def _inner(self, gap: str, last: str) -> str:
        """What closes an answer that is not the last: as the last one's, else a special token that is no header."""
        if last and gap.startswith(last):
            return last
        found = self._terminator(gap)
        return found if (gap[len(found) :].strip() if last else self._eos and found.endswith(self._eos)) else ""

    def _learn_calls(self) -> bool:
        tools = [{"type": "function", "function": {"name": _TOOL, "description": _TOOL, "parameters": {}}}]
        result = {"role": "tool", "content": _NEXT, "name": PROBE_NAME, "tool_call_id": PROBE_ID}
        for as_text in (False, True):
            call = called(PROBE_NAME, {"x": _VALUE}, PROBE_ID, as_text)
            context = [_user(_USER), _assistant("", tool_calls=[call]), result]
            try:
                text = self._render(context, tools, answering=True)
                if all(word in text for word in (_TOOL, PROBE_NAME, _VALUE, _NEXT)):
                    self._learn_call_closings(context, tools)
                    self.openings["tool"] = self._opening(context, _NEXT)
                    self.arguments_as_text = as_text
                    return True
            except BadRow:
                continue
        return False

    def _learn_call_closings(self, context: list[Given], tools: list[Given]) -> None:
        """A call ends where its rendering as the last message and in the middle part, or with its terminator."""
        tail = _after(self._render(context[:2]), _VALUE)
        # where tools were told of, a word may stand before a result
        gap = _between(self._render([*context, _assistant(_LAST)], tools), _VALUE, _NEXT)
        self.results_apart = self._apart(gap)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tail, gap, strict=False)))
        own = list(self._special.finditer(tail[:shared]))
        for after, text, plain in ((None, tail, (False, None)), ("tool", gap, (False, "user"))):
            wanted = self.closings[plain].terminator.strip()
            at = text.find(wanted)
            if wanted and at >= 0:
                self.closings[True, after] = Closing(wanted, text[at:])
            elif wanted and own:
                self.closings[True, after] = Closing(own[-1].group(), text[own[-1].start() :])
            else:
                self.closings[True, after] = Closing("", text[shared:])

    def _learn_results(self, context: list[Given]) -> None:
        """A template without tools may still have a place for their results."""
        context = [*context, {"role": "tool", "content": _NEXT, "name": PROBE_NAME}]
        try:
            text = self._render(context)
            if _NEXT in text:
                self.openings["tool"] = self._opening(context, _NEXT)
                gap = _between(text, _LAST, _NEXT)
                self.results_apart = self._apart(gap)
                self.closings[False, "tool"] = Closing(self._inner(gap, self.closings[False, None].terminator), gap)
        except BadRow:
            return

    def _apart(self, gap: str) -> bool:
        """Whether what stands before a result is no beginning of a user's turn."""
        return self.closings[False, "user"].gap not in gap


def _after(text: str, word: str) -> str:
    """What follows the word's last place."""
    _, found, after = text.rpartition(word)
    if not found:
        raise BadRow("the chat template leaves out a message")
    return after


def _between(text: str, first: str, second: str) -> str:
    """What stands between the two words; the first's last place before the second's first."""
    before, found, _ = text.partition(second)
    if not found:
        raise BadRow("the chat template leaves out a message")
    return _after(before, first)


def _squeezed(text: str) -> str:
    return "".join(text.split())
