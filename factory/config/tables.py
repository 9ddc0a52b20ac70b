"""The packaged models, data sets and recipes as options of Hydra's groups `model`, `data` and `recipe`.

A model or a data set is a row of a table; a recipe is a file in recipes/.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from factory.config.parsed import yaml_of

PLANNED = "_plan"  # the option that stands for a group of a plan, in place of those of conf/ and of the tables
_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
# in a wheel, recipes/ lies inside the package; in a checkout, beside it
RECIPES = next(path for path in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if path.is_dir())


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """`config` is the option as a file would hold it, its defaults list included; `package` where its keys stand."""

    about: str
    config: dict[str, Any]
    package: str | None = None


@cache
def options(group: str) -> dict[str, Option]:
    """The rows of a group by name; empty for a group that has only files. Families begin with `_`."""
    return dict(_TABLES[group]()) if group in _TABLES else {}


def option_of(group: str, path: object) -> str | None:
    """Return the first option of a group that is this id on the hub, or this path."""
    found = options(group).items()
    return next((name for name, row in found if path in (row.config.get("hub"), row.config.get("path"))), None)


def of_file(file: Path) -> Option:
    """Return the option that a file holds; its first comment says what it is."""
    text = file.read_text(encoding="utf-8")
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    about = " ".join(line.removeprefix("#").strip() for line in comment if not line.startswith("# @package"))
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    return Option(about=about, config=yaml_of(text.encode()) or {}, package=package and package[1])


def _recipes() -> dict[str, Option]:
    return {file.stem: of_file(file) for file in sorted(RECIPES.glob("*.yaml"))}


def _models() -> dict[str, Option]:
    found = dict[str, Option]()
    for family, shared in yaml_of((_HERE / "models.yaml").read_bytes()).items():
        models = shared.pop("models")
        if family != "_base":  # a file, which has every key
            found[family] = _option(shared, "_base")
        found |= {name: _option(row, family) for name, row in models.items()}
    return found


def _sets() -> dict[str, Option]:
    rows = yaml_of((_HERE / "datasets.yaml").read_bytes())
    return {name: _set(name, row) for name, row in rows.items()}


def _set(name: str, row: dict[str, Any]) -> Option:
    base = row.pop("of", None)
    keys = row if base else {"origin": "hub", **row}
    return _option(keys, f"{base or '_base'}@_here_", package=f"data.sources.{name}")


def _option(row: dict[str, Any], base: str, package: str | None = None) -> Option:
    return Option(about=row.pop("about"), config={"defaults": [base], **row}, package=package)


_TABLES = {"model": _models, "data": _sets, "recipe": _recipes}
