"""The keys of an option of the group `model`, without a composition."""

from dataclasses import replace
from typing import Any

from factory.config import compose, groups
from factory.config.refusal import UserError, refuse


def numbers(option: str, config_dirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an option's keys: of a packaged one those of its row, family and `_base`, without a composition.

    Raises UserError for a file of the user's own that is no option.
    """
    files = (folder / "model" / f"{option}.yaml" for folder in groups.folders(config_dirs)[:-1])
    if (file := next((file for file in files if file.is_file()), None)) is not None:
        line = compose.CommandLine(overrides=(f"model={option}",), config_dirs=config_dirs)
        try:
            return dict(compose.compose(line).tree["model"])
        except UserError as error:
            raise UserError(*(replace(each, setting=str(file)) for each in error.refusals)) from None
        except (TypeError, ValueError):
            because, fix = "an option is a mapping of keys", "begin it with defaults: [_base]"
            raise refuse("compose", str(file), "it is no mapping", because=because, fix=fix) from None
    found = groups.packaged("model", option).config
    keys = dict[str, Any]()
    for base in found.get("defaults", ()):
        keys = merged(keys, numbers(base))
    return merged(keys, {name: value for name, value in found.items() if name != "defaults"})


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both, the keys of `above` over those of `below`."""
    nested = {name for name, value in above.items() if isinstance(value, dict) and isinstance(below.get(name), dict)}
    return {**below, **above, **{name: merged(below[name], above[name]) for name in nested}}
