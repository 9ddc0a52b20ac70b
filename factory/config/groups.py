"""Groups of options, and recipes: where they lie, and their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.config import tables
from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, refusal, refuse

_HERE = Path(__file__).resolve().parents[1]
# in a wheel, conf/ lies inside the package; in a checkout, beside it
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())
GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
_SHOWN = 60  # options that are listed by name


def folders(config_dirs: tuple[str, ...]) -> list[Path]:
    """Where options lie, in the order in which they are looked for: one of the user's own stands for a packaged one.

    Without those that are `unusable_folders`.
    """
    unusable = {found.setting for found in unusable_folders(config_dirs)}
    return [*(Path(folder).resolve() for folder in config_dirs if _said(folder) not in unusable), CONF]


def unusable_folders(config_dirs: tuple[str, ...]) -> Iterator[Refusal]:
    """Why some of them cannot be looked into."""
    for folder in config_dirs:
        if not Path(folder).is_dir():
            because, fix = "your own options would be read from it", "check the path"
            yield refusal("config-dir", _said(folder), "there is no such folder", because=because, fix=fix)
        elif (Path(folder) / "config.yaml").is_file():
            because = (
                "options (model/NAME.yaml, data/NAME.yaml …) are read from it, and this would stand for all defaults"
            )
            fix = "move what it sets into recipe/NAME.yaml in that folder, and set recipe=NAME"
            yield refusal("config-dir-defaults", _said(folder), "it has a config.yaml", because=because, fix=fix)


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
    if (row := tables.options(group).get(name)) is not None:
        return row
    return tables.of_file(CONF / group / f"{name}.yaml")


def runs_of(recipe: str, config_dirs: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """Return what the file of a recipe of several runs holds; None of any other. Raises UserError."""
    own = (folder / "recipe" for folder in folders(config_dirs)[:-1])
    files = (folder / f"{recipe}.yaml" for folder in (*own, tables.RECIPES))
    file = next((file for file in files if file.is_file()), None)
    if file is None or b"runs" not in (content := file.read_bytes()):
        return None
    try:
        found = yaml_of(content, once_each=True)
    except ValueError as error:
        fix = "check the file"
        raise refuse("compose", str(file), "it cannot be read", because=str(error), fix=fix) from None
    return found if isinstance(found, dict) and "runs" in found else None
