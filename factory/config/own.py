"""Files of the user's own in the place of a packaged name: a method or a stage in one Python file, a chat template."""

import hashlib
import importlib.util
import os
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from factory.config import function
from factory.config.refusal import UserError, refuse

Kind = Literal["text", "messages", "pairs", "labelled"]  # of rows that a stage reads
KINDS: tuple[str, ...] = get_args(Kind)
# what a spec and a run must have, both in the one file
_NEEDED = {
    "methods": ("Settings", "trainable", "optimizer_bytes", "attach", "optimizer"),
    "stages": ("Settings", "KIND", "loss"),
}


def is_code(name: object) -> bool:
    """Whether a method's or a stage's name is the path of a Python file."""
    return isinstance(name, str) and name.endswith(".py")


def without_place(name: str) -> str:
    """Of a method, a stage or a template: of a file the name alone, as its place is nobody's business."""
    return Path(name).name


def digest(name: str) -> str:
    """A hash of the file, or of the one that a module:function is in; of one that cannot be read, of nothing."""
    path = function.file(name) if function.is_named(name) else Path(name)
    try:
        content = path.read_bytes() if path and path.is_file() else b""
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest()


def module(kind: str, path: str) -> ModuleType:
    """The file as a module, read again when it has changed. Raises UserError."""
    group = kind.removesuffix("s")
    if not os.path.isfile(path):  # noqa: PTH113  of a name that is too long, Path raises
        raise _own_module(f"{group}.name={path}", "there is no such file", group=group)
    return _module(kind, path, digest(path))


@cache
def _module(kind: str, path: str, sha256: str) -> ModuleType:
    group, name = kind.removesuffix("s"), f"_own_{kind}_{sha256}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    found = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for their types
    try:
        function.called(path, "importing it raised", partial(spec.loader.exec_module, found))
    except UserError as error:
        raise _own_module(f"{group}.name={path}", error.refusals[0].wrong, group=group) from None
    if wrong := _wrong(kind, vars(found)):
        raise _own_module(f"{group}.name={path}", wrong, group=group)
    return found


def _wrong(kind: str, parts: dict[str, Any]) -> str | None:
    lacking = [name for name in _NEEDED[kind] if name not in parts]
    if lacking:
        return f"it has no {', '.join(lacking)}"
    if parts.get("KIND", KINDS[0]) not in KINDS:
        return f"its KIND is {parts['KIND']}, none of {', '.join(KINDS)}"
    return None


def _own_module(setting: str, wrong: str, group: str) -> UserError:
    return refuse(
        "own-module",
        setting,
        wrong,
        because=f"a {group} of your own is one Python file with all that a {group} has",
        fix="correct the file; docs/contributing.md has a whole one",
    )
