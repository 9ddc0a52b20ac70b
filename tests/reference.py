"""The pages of docs/reference, from what they are about: verbs, keys, options.

`python tests/reference.py` writes them anew.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from factory import cli, help, templates
from factory.config import groups
from factory.config.compose import OWN
from factory.config.keys import Key, describe
from factory.config.settings import all_keys
from factory.verbs import models

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "`make golden` writes this page; a test holds it."


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("<", "\\<")


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """The cells of the first column are code."""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, *rest in rows:
        yield f"| `{str(name).replace('|', ' ')}` | {' | '.join(map(_cell, rest))} |"
    yield ""


def verbs() -> Iterator[str]:
    yield from ("# Verbs", "", f"`factory VERB …`; without one, `train`. {NOTE}", "")
    own = {name: [f"{group}.*" for group, read in OWN.items() if name in read] for name in cli.VERBS}
    rows = ((name, function.__doc__, ", ".join(own[name])) for name, function in cli.VERBS.items())
    yield from _table(("verb", "does", "keys of its own"), rows)
    yield from _table(("flag", ""), help.FLAGS.items())
    yield from ("Exit codes: 0 done, 1 failed while running, 2 refused, 130 interrupted with a checkpoint saved.", "")


def keys() -> Iterator[str]:
    yield from ("# Keys", "", f"What `factory explain KEY` says of each, by group. {NOTE}", "")
    for group, found in groupby(all_keys(), lambda key: key.path.partition(".")[0]):
        yield from (f"## {group}", "")
        columns = ("key", "default", "what it takes", "meaning")
        rows = ((key.path, help.default(key.path), describe(key), _meaning(key)) for key in found)
        yield from _table(columns, rows)


def _meaning(key: Key) -> str:
    said, having = "; ".join(help.meanings(key)), ", ".join(help.owners(key.path))
    return f"{said} (of {having})" if having else said


def options() -> Iterator[str]:
    yield from ("# Options", "", f"What `group=option` takes. {NOTE}", "")
    for group in groups.GROUPS:
        if group != "model":
            yield from (f"## {group}", "")
            rows = ((name, groups.packaged(group, name).about) for name in groups.options(group))
            yield from _table(("option", ""), rows)
    yield from ("## recipe", "")
    rows = ((name, groups.packaged("recipe", name).about) for name in groups.options("recipe"))
    yield from _table(("recipe", ""), rows)
    yield from ("## model.template", "")
    found = {name: templates.template(name) for name in templates.names()}
    rows = ((name, each.source, each.tools) for name, each in found.items())
    yield from _table(("template", "as in", "tools"), rows)
    yield from ("## model", "")
    columns = ("option", "path", "parameters", "context", "template", "licence", "")
    yield from _table(columns, (_of_model(row) for row in models.rows()))


def _of_model(row: models.Row) -> tuple[str, ...]:
    kinds = ", ".join(word for word in ("gated", "vision", "audio") if getattr(row, word))
    numbers = (f"{number:,}" if number else "" for number in (row.parameters, row.context_length))
    return row.option, row.path, *numbers, row.template, row.license, kinds


PAGES = {"verbs": verbs, "keys": keys, "options": options}


def page(name: str) -> str:
    return "\n".join(PAGES[name]()).rstrip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
