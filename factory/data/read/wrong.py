"""What is wrong with a file, and where: the errors that all readers share."""

import json
from pathlib import Path
from typing import Any

from factory.refusal import UserError, refuse

DEEPEST = 100  # lists and objects within each other: beyond it, writing a row back fails in one process or another


def broken(path: Path, wrong: str) -> UserError:
    return refuse("data-broken", f"path={path}", wrong)


def not_utf8(path: Path, wrong: str) -> UserError:
    return refuse("data-encoding", f"path={path}", wrong, name=path.name)


def not_utf8_at(path: Path, line: int, column: int, byte: int) -> UserError:
    return not_utf8(path, f"line {line}, byte {column} (0x{byte:02X}) is not UTF-8")


def damaged(path: Path, error: Exception, after: str) -> Exception:
    """What to raise for an error out of a decompressor or of Arrow: the system's own errors stay what they are."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    said = str(error).partition("\n")[0][:200]
    return broken(path, f"it is cut or damaged {after} ({said or type(error).__name__})")


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")


def unsound(value: Any, text: str) -> str | None:
    """Why UTF-8 or another process could not hold `value`, which was read from `text`."""
    if text.count("[") + text.count("{") > DEEPEST and _deep(value):
        return "is nested too deeply"
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"has half of a surrogate pair after {error.object[max(0, error.start - 30) : error.start]!r}"
    return None


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
