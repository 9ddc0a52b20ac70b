"""Images, videos and audios: where they stand in the texts, and where they are to be had."""

import base64
import re
from collections.abc import Sequence
from typing import Any

from factory.data.formats.values import parsed
from factory.data.record import MEDIA as KINDS
from factory.data.record import BadRow, Message

# by the column that lists them: the mark in a text, and the name of a single one
MEDIA = {column: (f"<{kind}>", kind) for column, kind in KINDS.items()}
COLUMNS = frozenset([*MEDIA, *(single for _, single in MEDIA.values())])
# the types of a content's parts, as the messages of OpenAI, Anthropic, Hugging Face and Qwen have them
PARTS = {
    type: column for column, (_, one) in MEDIA.items() for type in (one, f"{one}_url", f"input_{one}", f"{one}_file")
}
# how files of PNG, JPEG, GIF and WebP begin in base64: no path is so long without a dot
_BARE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{80,}={0,2}\s*")
# what a row's messages brought, in their order: a place, the number of one in the column, or None: the column's next
Found = dict[str, list[str | int | None]]


def mark(part: dict[str, Any], found: Found) -> str:
    """The mark of a content's part, which is noted in `found`."""
    column = PARTS[part["type"]]
    text, single = MEDIA[column]
    keys = (part["type"], single, f"{single}_url", "url", "path", "base64", "bytes", "source")
    own = next((part[key] for key in keys if part.get(key) is not None), None)
    if own is None:
        index = part.get("index")
        place = index if isinstance(index, int) and not isinstance(index, bool) else None
    else:
        place = _place({"base64": own} if own is part.get("base64") else own, single)
    found.setdefault(column, []).append(place)
    return text


def gather(row: dict[str, Any], found: Found, *conversations: Sequence[Message]) -> dict[str, Any]:
    """The record's images, videos and audios, as many as there are marks in each of its conversations.

    Where there is none at all, the marks are put in front of the first user's text. A row that brings no images may
    well talk of an `<image>`: then it is a text like any other.
    """
    if not found and COLUMNS.isdisjoint(row):
        return {}
    media: dict[str, Any] = {}
    for column, (mark, single) in MEDIA.items():
        counts = {sum(message["content"].count(mark) for message in messages) for messages in conversations}
        listed = _listed(row.get(column), single)
        if listed is None and counts != {0}:
            listed = _listed(row.get(single), single)
        if listed is None and column not in found:
            continue
        unequal = f"the {mark} marks are not as many as the {column}"
        places = _places(found.get(column, []), listed or [], unequal)
        if counts == {0} and places:
            first = next(message for message in conversations[0] if message["role"] == "user")
            first["content"] = mark * len(places) + first["content"]
        elif counts != {len(places)}:
            raise BadRow(unequal)
        if places:
            media[column] = places
    return media


def _places(parts: list[str | int | None], listed: list[str], reason: str) -> tuple[str, ...]:
    own = [part for part in parts if isinstance(part, str)]
    if own:
        if listed or len(own) < len(parts):
            raise BadRow("some of what is shown is in the messages and some is not")
        return tuple(own)
    numbers = [part for part in parts if isinstance(part, int)]
    if not numbers:
        return tuple(listed)
    if len(numbers) < len(parts) or not all(0 <= number < len(listed) for number in numbers):
        raise BadRow(reason)
    return tuple(listed[number] for number in numbers)


def _listed(value: Any, single: str) -> list[str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):  # of a table of texts (csv)
        value = _of_table(value, single)
    return [_place(place, single) for place in (value if isinstance(value, (list, tuple)) else (value,))]


def _of_table(value: str, single: str) -> Any:
    """A list as JSON; a path may begin so too."""
    try:
        return parsed(value, single)
    except BadRow:
        return value


def _place(value: Any, single: str) -> str:
    """A path or a URL; bytes become a data: URL, and so does an image that is nothing but base64."""
    if isinstance(value, dict):
        value = _inner(value, single)
    if isinstance(value, bytes):
        value = _data_url(base64.b64encode(value).decode(), "application/octet-stream")
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{single}: neither a path nor a URL nor bytes")
    return _data_url(value, f"{single}/*") if _BARE.fullmatch(value) else value


def _inner(value: dict[str, Any], single: str) -> Any:
    """Of {bytes, path} the bytes, where they are there: then the path is but a name."""
    for key in ("data", "base64"):  # OpenAI's audio is {data, format}
        if isinstance(value.get(key), str):
            return _data_url(value[key], f"{single}/{value.get('format') or '*'}")
    return next((value[key] for key in ("bytes", "url", "path") if value.get(key) is not None), None)


def _data_url(text: str, type: str) -> str:
    return f"data:{type};base64,{text}"
