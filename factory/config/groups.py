"""Groups of options, and recipes: where they lie, and their names."""

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from factory.config import tables
from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, refusal

_HERE = Path(__file__).resolve().parents[1]
# in a wheel, conf/ and recipes/ lie inside the package; in a checkout, beside it
ROOT = _HERE if (_HERE / "conf").is_dir() else _HERE.parent
CONF = ROOT / "conf"
GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
_SHOWN = 60  # options that are listed by name


def folders(config_dirs: tuple[str, ...], packaged: Path = CONF) -> list[Path]:
    """Where options lie, in the order in which they are looked for: one of the user's own stands for a packaged one.

    Without those that are `unusable_folders`.
    """
    unusable = {found.setting for found in unusable_folders(config_dirs)}
    return [*(Path(folder).resolve() for folder in config_dirs if _said(folder) not in unusable), packaged]


def unusable_folders(config_dirs: tuple[str, ...]) -> Iterator[Refusal]:
    """Why some of them cannot be looked into."""
    for folder in config_dirs:
        if not Path(folder).is_dir():
            yield refusal(
                "config-dir",
                _said(folder),
                "there is no such folder",
                because="your own options would be read from it",
                fix="check the path",
            )
        elif (Path(folder) / "config.yaml").is_file():
            yield refusal(
                "config-dir-defaults",
                _said(folder),
                "it has a config.yaml",
                because=(
                    "only options (model/NAME.yaml, data/NAME.yaml …) and recipes are read from it, and this would "
                    "stand for all defaults"
                ),
                fix="move what it sets into recipes/NAME.yaml in that folder, and set recipe=NAME",
            )


def _said(folder: str) -> str:
    return f"--config-dir {folder}"


def options(group: str, config_dirs: tuple[str, ...] = ()) -> list[str]:
    """The options of a group, those of the user's own folders included."""
    found = {path.stem for folder in folders(config_dirs) for path in (folder / group).glob("*.yaml")}
    found |= tables.options(group).keys()
    return sorted(name for name in found if not name.startswith("_"))


def listed(found: list[str]) -> str:
    """Options by name, unless there are too many to read."""
    if len(found) <= _SHOWN:
        return ", ".join(found)
    return f"{', '.join(found[: _SHOWN // 4])} … ({len(found)}; `factory models` lists them)"


def packaged(group: str, name: str) -> tables.Option:
    """A packaged option: a row of a table, or a file, whose first comment says what it is."""
    return tables.options(group).get(name) or of_file(CONF / group / f"{name}.yaml")


def of_file(path: Path) -> tables.Option:
    text = path.read_text(encoding="utf-8")
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    about = " ".join(line.removeprefix("#").strip() for line in comment if not line.startswith("# @package"))
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    return tables.Option(about=about, config=yaml_of(text.encode()) or {}, package=package and package[1])


def recipes(config_dirs: tuple[str, ...] = ()) -> list[str]:
    """Those of the user's own folders included."""
    return sorted(recipe_files(config_dirs))


def recipe_files(config_dirs: tuple[str, ...]) -> dict[str, Path]:
    """By name, those of the user's own folders in the place of packaged ones."""
    ordered = reversed(folders(config_dirs, ROOT))  # the first, which Hydra takes, comes last and stays
    return {path.stem: path for folder in ordered for path in (folder / "recipes").glob("*.yaml")}
