"""Plain trees to frozen dataclasses and back, with every problem collected.

A field's type, range, choices and documentation stand with the field (`key`). A value of the wrong type is never
bent into shape silently; what YAML 1.1 and a command line spell differently (`1e3`, `yes`, `012`) is read as YAML does.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NewType, get_args, get_origin

from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, did_you_mean, refusal

Bytes = NewType("Bytes", int)  # of memory, said with their unit
_UNITS = {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("B", 1000), ("iB", 1024))
}


Phrase = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a field means and allows beyond its type. `low` and `high` are inclusive unless `above` is used."""

    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None

    def __str__(self) -> str:
        return ", ".join(self.said(str))

    def said(self, phrase: Phrase) -> list[str]:
        """Each that there is."""
        there = {"above {}": self.above, "at least {}": self.low, "at most {}": self.high}
        return [phrase(text).format(f"{number:g}") for text, number in there.items() if number is not None]

    def allow(self, number: float) -> bool:
        return not (
            (self.low is not None and number < self.low)
            or (self.high is not None and number > self.high)
            or (self.above is not None and number <= self.above)
        )


def key(doc: str, **limits: float) -> Any:
    """A documented field without a default: defaults live in conf/ alone."""
    return dataclasses.field(metadata={"limits": Limits(doc, **limits)})


_hints = cache(typing.get_type_hints)


class Reader:
    """Converts a tree to dataclasses; `problems` and `bad_keys` collect what was wrong with it."""

    def __init__(self) -> None:
        self.problems: list[Refusal] = []
        self.bad_keys: set[str] = set()

    def record(self, cls: type, tree: Any, path: str = "") -> Any:
        """`tree` as an instance of the dataclass `cls`. A field that is wrong becomes None, and is in `bad_keys`."""
        if not isinstance(tree, dict):
            self._bad(path, tree, "a group of keys is needed here", f"set its keys, as in {path}.KEY=VALUE")
            return cls(**{field.name: None for field in dataclasses.fields(cls)})
        fields = {field.name: field for field in dataclasses.fields(cls)}
        hints = _hints(cls)
        for name in tree:
            if name not in fields:
                self._unknown(f"{path}.{name}" if path else str(name), tree[name], known_keys(cls, path))
        at = {name: f"{path}.{name}" if path else name for name in fields}
        self._missing([at[name] for name in fields if name not in tree])
        values = {
            name: self.value(hints[name], tree[name], at[name], field.metadata.get("limits")) if name in tree else None
            for name, field in fields.items()
        }
        return cls(**values)

    def _missing(self, paths: list[str]) -> None:
        """As one problem: a file of options that begins with none lacks them all."""
        if not paths:
            return
        base = "_base@_here_" if paths[0].startswith("data.sources.") else "_base"
        fix = f"restore it; a file of options of your own begins with defaults: [{base}], which has every key"
        others = ", ".join(path.rpartition(".")[2] for path in paths[1:])
        nor = f", nor {'are' if len(paths) > 2 else 'is'} {others}" if others else ""
        self._bad(paths[0], "(missing)", f"the key is not there{nor}", fix)
        self.bad_keys.update(paths)

    def value(self, kind: Any, value: Any, path: str, limits: Limits | None = None) -> Any:
        if dataclasses.is_dataclass(kind):
            return self.record(typing.cast(type, kind), value, path)
        if (optional := _optional_record(kind)) is not None:
            return None if value is None else self.record(optional, value, path)
        if get_origin(kind) is dict and isinstance(value, dict):
            return {str(name): self.value(get_args(kind)[1], item, f"{path}.{name}") for name, item in value.items()}
        try:
            value = convert(kind, value)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if limits and is_number and not limits.allow(value):
                raise ValueError(f"must be {limits}")
        except ValueError as error:
            meaning = f" ({limits.doc})" if limits else ""
            self._bad(path, value, str(error), f"set {path} to {describe(kind, limits)}{meaning}")
            return None
        return value

    def _bad(self, path: str, value: Any, wrong: str, fix: str) -> None:
        self.bad_keys.add(path)
        self.problems.append(refusal("bad-value", f"{path}={plain(value)}", wrong, fix=fix))

    def _unknown(self, path: str, value: Any, known: list[str]) -> None:
        self.bad_keys.add(path)
        from factory.config.meant import unknown_key  # which reads typed keys itself

        self.problems.append(unknown_key(path, value, known))


def _optional_record(kind: Any) -> type | None:
    """The dataclass of `Record | None`."""
    records = [one for one in get_args(kind) if dataclasses.is_dataclass(one)]
    return typing.cast(type, records[0]) if records and get_origin(kind) is types.UnionType else None


def plain(value: Any) -> str:
    """For a line on a screen."""
    text = whole(value)
    return text if len(text) <= 80 else text[:77] + "..."


def whole(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def convert(kind: Any, value: Any) -> Any:
    """`value` as the type `kind`. Raises ValueError with what is wrong."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value)
    if origin is Literal:
        if isinstance(value, str) and not any(isinstance(arg, str) for arg in args):
            with suppress(ValueError):
                value = yaml_of(value)
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        names = [str(arg) for arg in args]
        raise ValueError(f"not one of {', '.join(names)}; {did_you_mean(str(value), names)}".rstrip("; "))
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"not a list, as [{plain(value)}] is")
        return tuple(convert(args[0], item) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("not a mapping")
        return {str(name): convert(args[1], item) for name, item in value.items()}
    if kind is types.NoneType:
        if value is None:
            return None
        raise ValueError("not null")
    return _convert_scalar(kind, value)


def _convert_union(kinds: tuple[Any, ...], value: Any) -> Any:
    reasons = []
    # the text of a choice (`auto`) must not be read as another type first
    for kind in sorted(kinds, key=lambda kind: get_origin(kind) is not Literal):
        try:
            return convert(kind, value)
        except ValueError as error:
            reasons.append(str(error))
    shown = [reason for reason in reasons if reason != "not null"]
    raise ValueError(" and ".join(shown))


def _bytes(value: Any) -> int:
    """`24GB` is 24 x 10^9, `24GiB` is 24 x 2^30."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    units = {name.lower(): size for name, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise ValueError("not a number with a unit, as 24GB or 24GiB")
    return round(float(found[1]) * units[found[2].lower()])


def _convert_scalar(kind: Any, value: Any) -> Any:
    if kind is Bytes:
        return _bytes(value)
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError("not a text" + (" (quote it)" if isinstance(value, int | float) else ""))
    if isinstance(value, str):
        try:
            value = yaml_of(value)
        except ValueError:
            raise ValueError(_NOT[kind]) from None
        if isinstance(value, str):  # YAML 1.1 wants a dot in 1e3, people do not
            try:
                value = float(value)
            except ValueError:
                raise ValueError(_NOT[kind]) from None
    if kind is bool and isinstance(value, bool):
        return value
    if kind is not bool and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError("not a finite number")
        if kind is float:
            return number
        if value == int(value):
            if abs(value) >= _BEYOND:
                raise ValueError("beyond 64 bits")
            return int(value)
    raise ValueError(_NOT[kind])


_BEYOND = 2**63
_NOT = {bool: "not true or false", int: "not a whole number", float: "not a number"}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
    Bytes: "an amount as 24GB (10^9 bytes each) or 24GiB (2^30)",
}


def describe(kind: Any, limits: Limits | None = None, phrase: Phrase = str) -> str:
    """A type in a user's words, as `a whole number, at least 1`. `phrase` says an English one in another language."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        text = phrase("a group of keys")
    elif origin in (typing.Union, types.UnionType):
        text = phrase(" or ").join(describe(arg, None, phrase) for arg in args)
    elif origin is Literal:
        text = phrase(" or ").join(filter(None, (", ".join(map(plain, args[:-1])), plain(args[-1]))))
    elif origin in (list, tuple):
        text = phrase("a list ({} each)").format(describe(args[0], None, phrase))
    elif origin is dict:
        text = phrase("a mapping")
    else:
        text = phrase(_NAMES.get(kind, "a value"))
    return ", ".join([text, *(limits.said(phrase) if limits else ())])


@dataclass(frozen=True, slots=True)
class Key:
    path: str
    kind: Any
    limits: Limits | None


def walk_keys(cls: type, path: str = "") -> Iterator[Key]:
    """Every leaf key of a dataclass; a mapping's name is written `<name>`."""
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        where, kind = (f"{path}.{field.name}" if path else field.name), hints[field.name]
        if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
            where, kind = f"{where}.<name>", get_args(kind)[1]
        kind = _optional_record(kind) or kind
        if dataclasses.is_dataclass(kind):
            yield from walk_keys(typing.cast(type, kind), where)
        else:
            yield Key(where, kind, field.metadata.get("limits"))


def known_keys(cls: type, path: str) -> list[str]:
    return [found.path for found in walk_keys(cls, path)]


def to_tree(value: Any) -> Any:
    """Dataclasses, tuples and dicts to plain dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: to_tree(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    return value
