"""What a config of another tool says in Factory's keys, and what it says that has no equal here."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.config.line import listed, spelt
from factory.config.refusal import Refusal, refusal
from factory.config.settings import Verb
from factory.config.values import plain
from factory.config.words import program

IN_A_KEY = re.compile(r"[\w-]+", re.ASCII)


@dataclass(slots=True)
class Said:
    """A verb and overrides of Factory's; what has no equal, with the reason; what is so unsaid; what to know beside.

    `refused` is of what has no equal that which makes another model, or measures another: no comment is enough for it.
    """

    verb: Verb = "train"
    overrides: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)  # the overrides that `add` made

    def set(self, key: str, value: Any) -> None:
        self.overrides[key] = listed(value) if isinstance(value, list) else spelt(text_of(value))

    def add(self, key: str, names: list[str]) -> None:
        """To what was added before: more than one key of theirs may name what one list of ours holds."""
        self.lists[key] = list(dict.fromkeys((*self.lists.get(key, ()), *names)))
        self.set(key, self.lists[key])

    def refuse(self, name: str, value: Any, wrong: str, fix: str) -> None:
        self.refused.append(
            refusal(
                "import-unequal",
                f"{name}={plain(value)}",
                wrong,
                because="the command would train or measure something else, and a comment is passed over",
                fix=fix,
            )
        )

    def as_overrides(self) -> tuple[str, ...]:
        return tuple(f"{key}={value}" for key, value in self.overrides.items())


def as_script(name: str, said: Said, refused: list[str]) -> Iterator[str]:
    """Lines for a shell: the command, and as comments what it does not say and what it would be refused for here."""
    comments = [
        f"{Path(name).name}, as Factory says it",
        *(f"no equal  {key}: {why}" for key, why in said.missing.items()),
        *(f"so anyway {key}: {why}" for key, why in said.same.items()),
        *(f"said as   {key}: {note}" for key, note in said.noted.items()),
        *(f"refused   {line}" for line in refused),
    ]
    # a line's end in a key or a value would end the comment: what follows it, the shell would run
    yield from (f"# {' '.join(text.splitlines())}" for text in comments)
    words = [shlex.quote(text) for text in said.as_overrides()]
    yield " \\\n    ".join([f"{program('factory')} {said.verb}", *words])


def text_of(value: Any) -> str:
    return plain(value) if isinstance(value, bool) or value is None else str(value)


def names_of(value: Any) -> list[str]:
    if value is None:
        return []
    parts = value if isinstance(value, list) else text_of(value).split(",")
    return [text_of(part).strip() for part in parts]
