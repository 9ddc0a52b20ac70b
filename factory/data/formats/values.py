"""The values that all formats are made of: texts, JSON within a text, lists."""

import json
from typing import Any, NoReturn

from factory.config.parsed import once
from factory.data.record import EMPTY, BadRow

Row = dict[str, Any]  # as read gives it; not imported from there, which is much to import for a worker


def text(value: Any, name: str) -> str:
    """A text that says something."""
    if value is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a text")
    if not value or value.isspace():
        raise BadRow(f"{name} {EMPTY}")
    return value


def optional(value: Any, name: str) -> str:
    """A text that may be missing or empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a text")
    return "" if value.isspace() else value


def listed(value: Any, name: str) -> list[Any] | tuple[Any, ...]:
    """A list with something in it; a table of texts (csv) holds it as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, name)
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRow(f"{name} is empty or not a list")
    return value


def parsed(value: str, name: str) -> Any:
    """JSON within a text, as strict as that of a file."""
    try:
        found = json.loads(value, parse_constant=_refused, object_pairs_hook=once)
        if "\\ud" in value.lower():  # half of a surrogate pair would break the tokenizer
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is not JSON") from None
    return found


def dumped(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{name} is not a text") from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
