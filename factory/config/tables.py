"""The packaged models and data sets as options of Hydra's groups `model` and `data`: a row each, and no file."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from factory.config.parsed import yaml_of

_HERE = Path(__file__).parent


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


_TABLES = {"model": _models, "data": _sets}
