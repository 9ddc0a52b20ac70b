"""A form's state: the overrides of a command line, in the order in which they were given."""

import re
import shlex
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from factory.config import compose
from factory.config.refusal import refuse
from factory.config.words import config_dir_flags, program

_board_line = partial(refuse, "board-line", fix="paste a command line of one run, as `factory method=qlora stage=dpo`")

Overrides = tuple[str, ...]
_BARE = re.compile(r"[\w./:@%+\-]+( [\w./:@%+\-]+)*", re.ASCII)  # what Hydra's grammar takes without quotes
_LIST = re.compile(r"[\[{].*[\]}]", re.DOTALL)
_SHOWING = ("plan", "preview")  # verbs that show what is trained; the keys of their own say how


def name_of(text: str) -> str:
    """`data.path` of `+data.path=rows.jsonl`."""
    return text.lstrip("+~").partition("=")[0]


def again(verb: str, overrides: Iterable[str], config_dirs: Iterable[str]) -> str:
    """The command that a plan of these is compiled by, for a shell; what trains nothing reads no method."""
    return " ".join(
        [
            program("factory"),
            shlex.quote(verb),
            *arguments(overrides, config_dirs, () if verb == "train" else ("method",)),
        ]
    )


def arguments(overrides: Iterable[str], config_dirs: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Return the words of a shell that repeat a line, without the run's own places and keys of these patterns."""
    left_out = (*without, "hydra.*", "stage.resume")
    kept = (text for text in overrides if not any(fnmatchcase(name_of(text), pattern) for pattern in left_out))
    return [*config_dir_flags(config_dirs), *map(shlex.quote, kept)]


def group_of(text: str) -> str:
    """`hydra` of `hydra/launcher=joblib`, `data` of `data.path=rows.jsonl`."""
    return name_of(text).split(".")[0].split("/")[0]


def names_a_folder(line: compose.CommandLine, key: str = "hydra.run.dir") -> bool:
    return any(name_of(text) == key for text in line.overrides)


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
    return text if _LIST.fullmatch(text) else _as_text(text)


def _as_text(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    doubled = re.sub(r"\\+(?='|$)", lambda found: 2 * found[0], text)  # elsewhere a backslash is itself
    inner = doubled.replace("'", "\\'")
    return f"'{inner}'"


def unquoted(value: str) -> str:
    """What Hydra's grammar reads in a value that it wants quoted: for keys that are taken before it reads any."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    return value[1:-1].replace(f"\\{value[0]}", value[0])


def run_of(text: str) -> str:
    """What `run=` names, as it stands there or in quotes as other keys want them."""
    return unquoted(text.partition("=")[2])


def setting(key: str, value: str | Path) -> str:
    """`key=value` to be pasted into a shell, whatever the value is. `run` is no key of Hydra's: its is left alone."""
    return shlex.quote(f"{key}={value if key == 'run' else spelt(str(value))}")


def listed(values: Iterable[Any]) -> str:
    """Of texts: one in brackets, as tokens are, is no list within the list."""
    return f"[{','.join(_as_text(str(value).strip()) for value in values)}]"


def flags(config_dirs: Iterable[str]) -> list[str]:
    """A word each, as `factory` takes them."""
    return [f"--config-dir={folder}" for folder in config_dirs]


def command(overrides: Overrides, config_dirs: Iterable[str] = ()) -> str:
    """To be pasted into a shell."""
    return shlex.join([*program("factory").split(), "train", *flags(config_dirs), *overrides])


def read(text: str, config_dirs: tuple[str, ...] = ()) -> Overrides:
    """The overrides of a command line as it stands in a terminal or a README. Raises UserError where it has none.

    `config_dirs` are read anyway, so they may be named.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise _board_line(text, f"{error}", because="a quote that opens must close") from None
    words = _after_program([word for word in words if word != "$"])
    verb = "train"
    if words and re.fullmatch(r"[a-z-]+", words[0]) and not words[0].startswith("-"):
        verb = words.pop(0)
        if verb not in ("train", *_SHOWING):
            raise _board_line(verb, "it is another verb's", because="the form is of what is trained")
    if any(word.partition("=")[0] in compose.OF_A_VERB for word in words):
        raise _board_line(text, "it has flags", because="the form is of one run, without flags")
    line = compose.parse(words)
    if line.multirun or line.hydra_flags or line.config_dirs not in ((), config_dirs):
        raise _board_line(text, "it has flags", because="the form is of one run, without flags")
    return tuple(text for text in line.overrides if verb not in _SHOWING or group_of(text) != verb)


def _after_program(words: list[str]) -> list[str]:
    """Without `factory`, `python -m factory`, and variables before them."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if len(words) > 2 and re.fullmatch(r".*python[\d.]*", words[0]) and words[1] == "-m":
        words = words[2:]
    return words[1:] if words and Path(words[0]).name == "factory" else words
