"""What a named template and a tool format are made of, and how their YAML files are read: strictly."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from factory.config.parsed import yaml_of
from factory.config.refusal import refuse
from factory.config.values import plain, record
from factory.templates.slots import SPECIAL, around, slots

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A chat template. Texts have slots: `{{content}}`, `{{bos_token}}` and `{{eos_token}}`.

    A turn's text is written out around its `{{content}}`. An answer ends with what follows there, up to its first
    special token; where nothing follows, the tokenizer's end-of-text token closes the conversation's last answer.
    """

    source: str  # the model whose own template it follows, or who wrote it down
    system: str
    user: str
    assistant: str
    prefix: str = ""  # before everything
    system_place: Literal["turn", "first_user"] = "turn"  # inside the first user's turn, before its text
    default_system: str | None = None  # where a conversation has none
    generation_prompt: str | None = None  # the answer's header when the model answers; null: all before the content
    tool: str | None = None  # a tool's result; null: in the user's turn, as the tool format words it
    calls: str | None = None  # an answer that is tool calls alone; null: as other answers
    tools: str = "default"  # the tool format
    tools_place: Literal["system", "turn", "first_user"] = "system"  # in the system text, a system turn, before a user
    strip: tuple[Literal["system", "user", "assistant"], ...] = ()  # whose texts lose white space at their ends
    stop: tuple[str, ...] = ()  # tokens that end an answer, beside the tokenizer's end-of-text token
    reasoning: tuple[str, ...] = ()  # what stands before and after an answer's reasoning; none: it has no place
    reasoning_in_history: bool = False  # false: only the answers after the last question show theirs
    reasoning_empty: bool = False  # whether the last message shows an empty one where it has none

    def check(self) -> None:
        for text in (self.system, self.user, self.assistant, self.calls):
            where = "" if text is None or "tojson" not in text else " ({{content|tojson}} is one in `tool` alone)"
            assert text is None or around(text)[1] == "content", f"no place for content: {text!r}{where}"
        tool = self.tool
        assert tool is None or around(tool)[1] in ("content", "content|tojson"), f"no place for content: {tool!r}"
        for text in (self.prefix, self.generation_prompt or "", *self.reasoning):
            assert set(slots(text)) <= set(SPECIAL), f"only special tokens have a place in {text!r}"
        for text in (self.assistant, self.calls or self.assistant):
            assert text.startswith(self.opening), f"{text!r} does not begin as the generation prompt does"
        assert (self.system_place, self.tools_place) != ("first_user", "turn"), "no system turn for the tools"
        assert len(self.reasoning) in (0, 2), "reasoning needs what stands before and after it"

    @property
    def opening(self) -> str:
        """What the model is given when it answers."""
        return around(self.assistant)[0] if self.generation_prompt is None else self.generation_prompt

    @property
    def closes(self) -> bool:
        """Whether it writes anything after an answer that ends it."""
        return bool(around(self.assistant)[2].strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolText:
    """How a model is told of tools, and how it calls them.

    Slots of `tool`: name, description, function|tojson (name, description, parameters), tool|tojson (the same in
    OpenAI's wrapping), parameters|tojson; with `(indent=4)` also. Of `call`: name, name|tojson, arguments|tojson.
    """

    describe: str  # around {{tools}}
    tool: str
    between_tools: str
    calls: str  # around {{calls}}
    call: str
    between_calls: str
    after_content: str  # between an answer's text and its calls
    result: str  # around {{content}}, in a user's turn; in a tool's own where `promised`
    first: bool  # whether the tools stand before the system's own text

    def check(self) -> None:
        for text, slot in ((self.describe, "tools"), (self.calls, "calls"), (self.result, "content")):
            assert around(text)[1] == slot, f"no place for {slot}: {text!r}"

    @property
    def promised(self) -> bool:
        """Whether `describe` says by which word a result is known: a tool's own turn alone does not keep that."""
        word = around(self.result)[0].strip()
        return bool(word) and word in self.describe


Made = TypeVar("Made", Template, ToolText)


def read(cls: type[Made], path: Path) -> Made:
    """The file as an instance of `cls`. `like: NAME` takes what is not said from the packaged one of that name.

    Raises UserError for a key or a value, AssertionError for texts that do not go together.
    """
    defaults = {
        field.name: field.default for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING
    }
    try:
        made = record(cls, defaults | _tree(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][1:]))
        raise refuse(
            "bad-value",
            f"{path.stem}.{key}={plain(first['input'])}",
            "there is no such key" if first["type"] == "unexpected_keyword_argument" else first["msg"],
            because="a template's keys are texts of its parts",
            fix=f"set {key} as the packaged templates do",
        ) from None
    made.check()
    return made


def _tree(path: Path) -> dict[str, Any]:
    tree = yaml_of(path.read_text(encoding="utf-8"))
    assert isinstance(tree, dict), "it is not a mapping of keys"
    other = tree.pop("like", None)
    if other is None:
        return tree
    base = path.with_stem(other) if _HERE in path.parents else _HERE / f"{other}.yaml"
    assert base.is_file(), f"like: there is no template {other}"
    return _tree(base) | tree
