"""A form's state as a YAML file: a recipe of one run, as it may lie in DIR/recipe/ of a --config-dir."""

from functools import partial
from typing import Any

import yaml

from factory.board.fields import as_typed, at
from factory.config import groups
from factory.config.line import Overrides, listed, name_of, spelt
from factory.config.parsed import yaml_of
from factory.config.refusal import refuse

_board_line = partial(refuse, "board-line", fix="paste a command line of one run, as `factory method=qlora stage=dpo`")

_HEAD = "# @package _global_\n"
_WANTED = "a recipe of one run is needed: `defaults` of groups, and keys in their groups"


def written(overrides: Overrides, tree: dict[str, Any]) -> str:
    """The options as `defaults`, the keys with the values that they have in the composed tree."""
    chosen: list[Any] = []
    keys: dict[str, Any] = {}
    for text in overrides:
        name, value = name_of(text), text.partition("=")[2]
        if name in groups.GROUPS:
            chosen.append({f"override /{name}": yaml_of(value)})
        elif name == "recipe":
            chosen.insert(0, f"/recipe/{value}")
        else:
            _put(keys, name.split("."), at(tree, name))
    content = ({"defaults": chosen} if chosen else {}) | keys
    return _HEAD + (yaml.safe_dump(content, sort_keys=False, allow_unicode=True) if content else "")


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def read(text: str) -> Overrides:
    """The overrides of such a file. Raises UserError where it is none."""
    try:
        content = yaml_of(text)
    except ValueError as error:
        raise _board_line("the file", str(error), because=_WANTED) from None
    content = {} if content is None and text.startswith(_HEAD) else content
    if not isinstance(content, dict) or "runs" in content:
        raise _board_line("the file", "it has no settings of one run", because=_WANTED)
    return (*_chosen(content.pop("defaults", [])), *_keys(content, ""))


def _chosen(defaults: Any) -> Overrides:
    found: list[str] = []
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if isinstance(entry, str) and entry.startswith("/recipe/"):
            found.append(f"recipe={entry.removeprefix('/recipe/')}")
        elif isinstance(entry, dict) and len(entry) == 1:
            ((name, value),) = entry.items()
            group = str(name).removeprefix("override").strip().lstrip("/")
            found.append(f"{group}={listed(value) if isinstance(value, list) else value}")
        elif entry != "_self_":
            raise _board_line("the file", f"its defaults have {entry!r}", because=_WANTED)
    return tuple(found)


def _keys(tree: dict[str, Any], above: str) -> Overrides:
    found: list[str] = []
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and value:
            found += _keys(value, f"{path}.")
        else:
            found.append(f"{path}={spelt(as_typed(value))}")
    return tuple(found)
