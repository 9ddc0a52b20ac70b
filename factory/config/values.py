"""Values to text and to plain trees, and plain trees to dataclasses."""

import dataclasses
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

T = TypeVar("T")


def plain(value: Any) -> str:
    """Return the value for a line on a screen, 80 characters at most."""
    text = whole(value)
    return text if len(text) <= 80 else text[:77] + "..."


def whole(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def to_tree(value: Any) -> Any:
    """Return models, dataclasses and tuples as plain dicts and lists, ready for YAML or JSON."""
    if isinstance(value, BaseModel):
        return {name: to_tree(item) for name, item in value}
    if dataclasses.is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: to_tree(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    return value


def record(kind: type[T], tree: Any) -> T:
    """Return the tree as a dataclass or model, unknown keys forbidden. Raises ValueError."""
    return _adapter(kind).validate_python([tree])[0]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # of a list, as pydantic takes a config only for a type without one of its own; dataclasses within inherit it
    return TypeAdapter(list[kind], config=ConfigDict(extra="forbid"))  # pyright: ignore[reportInvalidTypeForm]
