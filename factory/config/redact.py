"""Passwords and tokens are written and shown nowhere: what finds them, and what stands in their place.

Found are logins in addresses, values that stand beside a secret's name, tokens by their form, and the values of this
process's environment variables that are named like secrets. What a plan names (`tokens`, `eos_token`) is none.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

HIDDEN = "[redacted]"
_SHORTEST = 6  # characters of an environment variable's value: what is shorter is a word that stands everywhere
_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)$", re.IGNORECASE)
_SECRET = r"(?:api_?key|access_?key|private_?key|password|passwd|secret|credentials?|(?:access|auth|hub|hf)_?token)"  # noqa: S105  a pattern
_MAKERS = ("ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "dapi", "sk-", "xoxa-", "xoxb-", "xoxp-")
_NAMES = ("key", "passw", "secret", "credential", "token")


@dataclass(frozen=True, slots=True)
class Form:
    """What a secret looks like: `words`, one of which is there where it may be; the pattern; what stands for it."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    stands: str


_FORMS = (
    # scheme://user:password@ and https://token@, but not a database's bare user
    Form(("://",), re.compile(r"(\w[\w+.-]*://)[^/\s:@'\"]*:[^/\s@'\"]+@"), rf"\1{HIDDEN}@"),
    Form(("://",), re.compile(r"(https?://)[^/\s:@'\"]{12,}@"), rf"\1{HIDDEN}@"),
    # ?token=… in an address
    Form(
        ("?", "&"),
        re.compile(rf"([?&](?:\w*token|key|sig|signature|x-amz-\w+|\w*{_SECRET})=)[^&\s'\"#]+", re.I),
        rf"\1{HIDDEN}",
    ),
    Form(
        ("authorization",),
        re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:\w+ )?)[^\s'\"]{6,}", re.I),
        rf"\1{HIDDEN}",
    ),
    Form(("bearer ",), re.compile(r"(\bbearer )[\w.~+/=-]{8,}", re.I), rf"\1{HIDDEN}"),
    # name=value, "name": "value", NAME: value; a word of prose before a colon is none
    Form(_NAMES, re.compile(rf"({_SECRET}=['\"]?)(?!\[redacted\])[^\s'\",;)\]}}}}]{{4,}}", re.I), rf"\1{HIDDEN}"),
    Form(_NAMES, re.compile(rf"({_SECRET}['\"]: ?['\"])(?!\[redacted\])[^'\"]{{4,}}", re.I), rf"\1{HIDDEN}"),
    Form(_NAMES, re.compile(r"([A-Z]_(?:TOKEN|KEY|PASSWORD|SECRET)(?:=|: ))(?!\[redacted\])\S+"), rf"\1{HIDDEN}"),
    # what their makers start their tokens with
    Form(_MAKERS, re.compile(rf"\b(?:{'|'.join(_MAKERS)})[A-Za-z0-9_-]{{20,}}"), HIDDEN),
    Form(("hf_", "akia"), re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"), HIDDEN),
)


Named = tuple[tuple[str, str], ...]  # names of environment variables with their values


def redacted(text: str) -> str:
    """The text without its secrets."""
    return _redacted(text, _named(os.environ))


def _redacted(text: str, named: Named) -> str:
    lower = text.lower()  # most texts hold no word of any form: a pattern is looked for where one stands
    for form in _FORMS:
        if any(word in lower for word in form.words):
            text = form.pattern.sub(form.stands, text)
    for name, value in named:
        if value in text:
            text = text.replace(value, f"[{name}]")
    return text


def secret_in(tree: Any) -> str | None:
    """The first key of a tree of plain values, as `a.b`, whose text holds a secret. Of a list, the list's own key."""
    return _secret_in(tree, "", _named(os.environ))


def _secret_in(tree: Any, path: str, named: Named) -> str | None:
    if isinstance(tree, str):
        return path if _redacted(tree, named) != tree else None
    if isinstance(tree, dict):
        inside = ((item, f"{path}.{name}" if path else str(name)) for name, item in tree.items())
    else:
        inside = ((item, path) for item in (tree if isinstance(tree, list | tuple) else ()))
    return next((found for item, where in inside if (found := _secret_in(item, where, named))), None)


def without_secrets(value: Any) -> Any:
    """A tree of plain values with its texts redacted. Its keys are names of ours."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: without_secrets(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def clean_file(path: Path) -> None:
    """Redacts a log that others wrote into, past our streams. What cannot be read or written is left as it is."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if (clean := redacted(text)) != text:
            path.write_text(clean, encoding="utf-8", errors="surrogateescape")
    except OSError:
        return


def redacting(stream: IO[str]) -> IO[str]:
    return cast(IO[str], Redacting(stream))


class Redacting:
    """A text stream that forgets secrets on their way through it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _named(environment: Mapping[str, str]) -> Named:
    return _of(tuple((name, value) for name, value in environment.items() if _is_named(name)))


@lru_cache(maxsize=4096)
def _is_named(name: str) -> bool:
    return _NAME.search(name) is not None


@lru_cache(maxsize=8)
def _of(found: Named) -> Named:
    """The longest first: one may hold another."""
    usable = [(name, value) for name, value in found if len(value) >= _SHORTEST and not value.startswith("/")]
    return tuple(sorted(usable, key=lambda each: -len(each[1])))
