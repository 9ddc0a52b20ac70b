"""A form's state: the overrides of a command line, in the order in which they were given."""

import re
import shlex
from collections.abc import Iterable
from typing import Any

from factory import compose
from factory.refusal import refuse
from factory.words import program

Overrides = tuple[str, ...]
_BARE = re.compile(r"[\w./:@%+\-]+( [\w./:@%+\-]+)*")  # what Hydra's grammar takes without quotes
_LIST = re.compile(r"[\[{].*[\]}]", re.DOTALL)


def name_of(text: str) -> str:
    """`data.path` of `+data.path=rows.jsonl`."""
    return text.lstrip("+~").partition("=")[0]


def changed(overrides: Overrides, name: str, value: str | None) -> Overrides:
    """With one key or group set anew, where it stood; None leaves it at its default."""
    new = () if value is None else (f"{name}={value}",)
    places = [place for place, text in enumerate(overrides) if name_of(text) == name]
    if not places:
        return (*overrides, *new)
    last = places[-1]
    return tuple(
        item
        for place, text in enumerate(overrides)
        for item in (new if place == last else () if place in places else (text,))
    )


def spelt(text: str) -> str:
    """What a person typed into a field, as Hydra's grammar wants a value: quoted where it must be."""
    text = text.strip()
    if _BARE.fullmatch(text) or _LIST.fullmatch(text):
        return text
    inner = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{inner}'"


def listed(values: Iterable[Any]) -> str:
    return f"[{','.join(spelt(str(value)) for value in values)}]"


def command(overrides: Overrides, verb: str = "train") -> str:
    """To be pasted into a shell."""
    return shlex.join([*program("factory").split(), verb, *overrides])


def read(text: str) -> Overrides:
    """The overrides of a command line as it stands in a terminal or a README. Raises UserError where it has none."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise refuse("board-line", text, f"{error}", wanted="a quote that opens must close") from None
    words = [word for word in words if word != "$"]
    while words and _is_program(words[0]):
        words.pop(0)
    if words and re.fullmatch(r"[a-z-]+", words[0]) and not words[0].startswith("-"):
        if words[0] not in ("train", "plan", "preview"):
            raise refuse("board-line", words[0], "it is another verb's", wanted="the form is of what is trained")
        words.pop(0)
    line = compose.parse(words)
    if line.multirun or line.hydra_flags or line.config_dirs:
        raise refuse("board-line", text, "it has flags", wanted="the form is of one run, without flags")
    return line.overrides


def _is_program(word: str) -> bool:
    """`factory`, `python -m factory`, and variables before them."""
    return word in ("-m", "factory") or re.fullmatch(r".*python[\d.]*|.*/factory|[A-Z_]+=.*", word) is not None
