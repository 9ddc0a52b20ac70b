"""Keys read from pydantic models: their paths, and their types in words."""

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from factory.config.values import plain

AMOUNT = "an amount of memory, in a type's metadata"
Phrase = Callable[[str], str]
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
}


@dataclass(frozen=True, slots=True)
class Key:
    path: str
    kind: Any  # the type, without the field's own limits
    field: FieldInfo

    @property
    def description(self) -> str:
        return self.field.description or ""


def walk(model: type[BaseModel], path: str = "") -> Iterator[Key]:
    """Yield every leaf key of a model; a mapping's name is written `<name>`."""
    for name, field in model.model_fields.items():
        where = f"{path}.{name}" if path else name
        inner = model_of(field.annotation)
        if inner is None and (inner := items_of(field.annotation)) is not None:
            where = f"{where}.<name>"
        if inner is not None:
            yield from walk(inner, where)
        else:
            yield Key(where, field.annotation, field)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The branches of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def model_of(kind: Any) -> type[BaseModel] | None:
    """Return the model of `Model`, `Model | None` and `Annotated[Model, ...]`."""
    parts = (get_args(part)[0] if get_origin(part) is Annotated else part for part in _parts(kind))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def items_of(kind: Any) -> type[BaseModel] | None:
    """Return the model of `dict[str, Model]`."""
    return model_of(get_args(kind)[1]) if get_origin(kind) is dict else None


def takes_flag(kind: Any) -> bool:
    """Whether true or false may be a value of the type, or is refused by it anyway."""
    numbers = (get_args(part)[0] if get_origin(part) is Annotated else part for part in _parts(kind))
    return bool in _parts(kind) or not {int, float} & {part for part in numbers if isinstance(part, type)}


def choices(kind: Any) -> list[str]:
    return [plain(value) for part in _parts(kind) if get_origin(part) is Literal for value in get_args(part)]


def describe(key: Key, phrase: Phrase = str) -> str:
    """Return a key's type in words, as `a whole number, at least 1`. `phrase` translates each English phrase."""
    return ", ".join([_type(key.kind, key.field.metadata, phrase), *_limits(key.field.metadata, phrase)])


def _limits(metadata: typing.Iterable[Any], phrase: Phrase) -> Iterator[str]:
    for name, text in (("gt", "above {}"), ("ge", "at least {}"), ("le", "at most {}")):
        for each in metadata:
            for limit in getattr(each, "metadata", (each,)):  # a nested Field holds its limits
                if (number := getattr(limit, name, None)) is not None:
                    yield phrase(text).format(f"{number:g}")


def _type(kind: Any, metadata: typing.Iterable[Any], phrase: Phrase) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if AMOUNT in metadata:
        return phrase("an amount as 24GB (10^9 bytes each) or 24GiB (2^30)")
    if origin is Annotated:
        return ", ".join([_type(args[0], args[1:], phrase), *_limits(args[1:], phrase)])
    if origin in (typing.Union, types.UnionType):
        return phrase(" or ").join(_type(arg, (), phrase) for arg in args)
    if origin is Literal:
        return phrase(" or ").join(filter(None, (", ".join(map(plain, args[:-1])), plain(args[-1]))))
    if origin in (list, tuple):
        return phrase("a list ({} each)").format(_type(args[0], (), phrase))
    if origin is dict:
        return phrase("a mapping")
    return phrase(_NAMES.get(kind, "a value"))
