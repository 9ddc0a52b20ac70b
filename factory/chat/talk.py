"""A conversation: what was said, what the commands of its user do, and what an answer is asked with. No terminal."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.config.refusal import UserError, did_you_mean
from factory.config.settings import Generation, group
from factory.config.values import plain, to_tree
from factory.data.record import Message, ToolCall
from factory.data.tools import bare
from factory.inference.calls import open_call
from factory.inference.prompts import Conversation
from factory.inference.types import Sampling
from factory.plan.inspect.model import local

HELP = """/system TEXT      the system message from now on; alone: none
/set KEY=VALUE    how answers are drawn: temperature, top_p, top_k, max_tokens, seed, stop; alone: shows it
/tools FILE       functions that the model may call (JSON, as OpenAI's API has them); alone: none
/result TEXT      what a called tool gives back
/regenerate       the last answer once more
/undo             takes back the last message and its answer
/clear            begins anew, with the same system message
/save FILE        the conversation as a row of messages, which can be trained on (.jsonl: added to the file)
/exit             or Ctrl-D
A line that ends with \\ goes on in the next; between lines of \"\"\" stands a text of many lines.
Ctrl-C stops an answer."""


class Wrong(ValueError):
    """What the user is told instead of an answer."""


@dataclass(slots=True)
class Talk:
    """`sides`: what each model has seen, in the models' order: the questions are the same, the answers their own."""

    generation: Generation
    system: str | None
    count: int = 1
    tools: tuple[dict[str, Any], ...] = ()
    sides: list[list[Message]] = field(default_factory=list)
    again: int = 0  # how often an answer was asked for once more: a seed must not give the same one

    def __post_init__(self) -> None:
        self.sides = [[] for _ in range(self.count)]

    def conversation(self, side: int) -> Conversation:
        said = self.sides[side]
        before: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return Conversation(messages=(*before, *said), tools=self.tools)

    def sampling(self) -> Sampling:
        asked = self.generation
        return Sampling(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            seed=None if asked.seed is None else asked.seed + self.again,
        )

    def ask(self, text: str) -> None:
        for side in self.sides:
            side.append({"role": "user", "content": text})

    def result(self, text: str) -> None:
        """Of the first call that has none yet."""
        calls = [open_call(side) for side in self.sides]
        if not any(calls):
            raise Wrong("no tool was called")
        for side, call in zip(self.sides, calls, strict=True):
            if call is not None:
                side.append({"role": "tool", "content": text, "name": call["name"]})

    def answered(self, side: int, text: str, calls: Sequence[ToolCall] = ()) -> None:
        message: Message = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = list(calls)
        self.sides[side].append(message)

    def waits(self, side: int) -> bool:
        """Whether an answer is the next thing to be said."""
        said = self.sides[side]
        return bool(said) and said[-1]["role"] != "assistant" and open_call(said) is None

    def undo(self, *, question: bool) -> None:
        """Takes back the last answer, and with `question` what it answered."""
        if not any(self.sides):
            raise Wrong("nothing was said yet")
        for side in self.sides:
            while side and side[-1]["role"] != "user":
                side.pop()
            if question and side:
                side.pop()
        self.again += not question

    def clear(self) -> None:
        for side in self.sides:
            side.clear()

    def set(self, text: str) -> str:
        """Sets `key=value`, and returns what is set now. Raises Wrong."""
        values: dict[str, Any] = to_tree(self.generation)
        for word in text.split():
            name, equals, value = word.partition("=")
            name = name.removeprefix("generation.")
            if name not in values or not equals:
                hint = did_you_mean(name, values)
                raise Wrong(f"{word} is none of KEY=VALUE with {', '.join(values)}; {hint}".rstrip("; "))
            values[name] = None if value == "null" else [value] if name == "stop" else value
        try:
            made = group(Generation, "generation", values)
        except UserError as error:
            raise Wrong(f"{error.refusals[0].setting}: {error.refusals[0].wrong}") from None
        self.generation = made
        return "  ".join(f"{name}={plain(value)}" for name, value in to_tree(made).items())

    def read_tools(self, file: str) -> int:
        """How many there are now. Raises Wrong."""
        if not file:
            self.tools = ()
            return 0
        try:
            found = tuple(bare(tool) for tool in json.loads(local(file).read_text(encoding="utf-8")))
            if not all(isinstance(tool["name"], str) for tool in found):
                raise TypeError
        except OSError as error:
            raise Wrong(f"{file} cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Wrong(f"{file} is no JSON list of functions with a name") from None
        self.tools = found
        return len(self.tools)

    def save(self, file: str, titles: Sequence[str]) -> str:
        """A row a model. A file that is there is only added to, if it is one of rows. Raises Wrong."""
        if not file:
            raise Wrong("name a file: /save talk.jsonl")
        if not any(self.sides):
            raise Wrong("nothing was said yet")
        path, rows = local(file), list[dict[str, Any]]()
        for side, title in enumerate(titles):
            row: dict[str, Any] = {"messages": list(self.conversation(side).messages)}
            row |= {"tools": list(self.tools)} if self.tools else {}
            rows.append({**row, "model": title})
        if path.exists() and path.suffix != ".jsonl":
            raise Wrong(f"{path} is there already, and nothing is written over")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with path.open("a", encoding="utf-8") as out:
                out.write(lines if path.suffix == ".jsonl" else json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise Wrong(f"{path} cannot be written ({error.strerror})") from None
        return str(path)
