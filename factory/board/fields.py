"""A form as data: what the schema and the groups say of each key, with its value in a composed tree.

A method's or a stage's own keys are those of its Settings, so that its YAML and its spec are all that a new one needs.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from factory.config import groups, registry, settings
from factory.config.keys import Key, Phrase, describe, walk
from factory.config.line import spelt
from factory.config.values import plain

Kind = Literal["flag", "choice", "several", "text"]
# what has a form
FORMS = ("stage", "method", "data", "model", "precision", "compute", "hardware", "evaluate", "tracking")
_OF_OPTIONS = ("model.architecture", "method.name", "stage.name", "data.sources", "tracking.parent_run")
_FLAG = ("true", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A key: `value` as it is typed on the command line, `choices` of a choice or of several."""

    key: Key
    kind: Kind
    value: str
    choices: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return self.key.path

    @property
    def doc(self) -> str:
        return self.key.description

    def type(self, phrase: Phrase = str) -> str:
        """In words."""
        return describe(self.key, phrase)


def fields(group: str, tree: dict[str, Any]) -> list[Field]:
    """Of a group's keys, in the schema's order. What an option alone can know has none."""
    shown = (key for key in _keys(group, tree) if not key.path.startswith(_OF_OPTIONS) and "<" not in key.path)
    return [_field(key, at(tree, key.path)) for key in shown]


def _keys(group: str, tree: dict[str, Any]) -> Iterator[Key]:
    if group in settings.NAMED:
        return walk(registry.spec(settings.NAMED[group], tree[group]["name"]).Settings, group)
    return walk(settings.GROUPS[group], group)


def at(tree: Any, path: str) -> Any:
    """The value of a key; None where there is none."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _field(key: Key, value: Any) -> Field:
    kind, choices = _widget(key.kind)
    return Field(key=key, kind=kind, value=as_typed(value), choices=choices)


def _widget(kind: Any) -> tuple[Kind, tuple[str, ...]]:
    """What a key of this type is set by, and from which choices."""
    if kind is bool:
        return "flag", _FLAG
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return "several", tuple(map(plain, get_args(get_args(kind)[0])))
    parts = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    choices: list[str] = []
    for part in parts:
        if get_origin(part) is Literal:
            choices += map(plain, get_args(part))
        elif part is bool:
            choices += _FLAG
        elif part is types.NoneType:
            choices.append("null")
        else:  # a number or a text: typed
            return "text", ()
    return "choice", tuple(dict.fromkeys(choices))


def as_typed(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}: {_inside(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_inside, value)) + "]"
    if isinstance(value, bool) or value is None:
        return plain(value)
    return repr(value) if isinstance(value, float) else str(value)


def _inside(value: Any) -> str:
    """Of a list or a mapping: there a text is quoted where it must be, before it stands on a line."""
    return spelt(value) if isinstance(value, str) else as_typed(value)


@cache
def options(group: str, config_dirs: tuple[str, ...] = ()) -> tuple[str, ...]:
    return tuple(groups.options(group, config_dirs))
