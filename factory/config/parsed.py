"""Texts from outside to plain values: YAML and JSON by one function each, which raises nothing but ValueError."""

import json
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_VALUES = 10_000_000  # of a YAML text, an alias counted as what it stands for
# what the constructors of tags (!!timestamp, !!int …) raise of values that are none
_WRONG = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


def yaml_of(content: str | bytes, *, once_each: bool = False) -> Any:
    """Plain values alone: no tag makes an object. Raises ValueError.

    Of a key that a mapping has twice YAML keeps the last value; with `once_each` such a text raises NamedTwice.
    """
    try:
        if once_each:
            _once_each(yaml.compose(content, _LOADER))
        found = yaml.load(content, _LOADER)  # noqa: S506  a safe one, in C where there is one
        values(found)
    except NamedTwice:
        raise
    except _WRONG as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(said) from None
    return found


def json_of(content: str | bytes) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class NamedTwice(ValueError):
    """An object or mapping has a key twice: of its two values the last would be taken in silence."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of a decoder that reads what people wrote. Raises NamedTwice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NamedTwice(f"has a key twice: {twice[:60]!r}")
    return found


def _once_each(root: yaml.Node | None) -> None:
    """Raises NamedTwice for a mapping anywhere in the text, which an alias may hold in itself."""
    waiting, seen = [root] if root else [], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            waiting += [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def values(tree: Any) -> int:
    """How many there are when every alias is written out. Raises ValueError where that has no end, or next to none."""
    return _values(tree, {}, set())


def _values(tree: Any, known: dict[int, int], above: set[int]) -> int:
    if not isinstance(tree, dict | list | tuple | set):
        return 1
    at = id(tree)
    if at in above:
        raise ValueError("an alias holds itself")
    if at not in known:
        above.add(at)
        inner = [*tree, *tree.values()] if isinstance(tree, dict) else tree
        known[at] = 1 + sum(_values(each, known, above) for each in inner)
        above.remove(at)
        if known[at] > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    return known[at]
