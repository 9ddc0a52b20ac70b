"""The options of the group `model` as a table, read from their files: to compose each would take Hydra 0.4 s."""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.architecture import architecture, media_of
from factory.config import groups
from factory.config.parsed import yaml_of
from factory.config.refusal import UserError, did_you_mean, refuse
from factory.config.words import not_shown

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 110  # columns from which a table shows where a model is from
_LEAST = ("template", "context", "licence", "parameters")  # left out in this order where there is no room


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    option: str
    path: str
    family: str
    parameters: int | None  # None: an option of the user's own, whose folder is read when it is planned
    context_length: int | None
    template: str
    license: str
    gated: bool
    vision: bool
    audio: bool


@dataclass(frozen=True, slots=True)
class _Below:
    """An option that the defaults of another name, `_self_` for its own keys: they stand below the keys `place`."""

    option: str
    place: list[str]
    optional: bool = False


def numbers(option: str, config_dirs: tuple[str, ...] = (), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """An option's keys, those of its family and of `_base` below them. Raises UserError of a file that is no option.

    `above`: the files whose defaults have led here.
    """
    file = _file(option, config_dirs)
    if file is None:
        named = above[-1] if above else option
        raise refuse("compose", str(named), f"its defaults name {option}", detail="there is no such option of `model`")
    if file in above:
        raise refuse("defaults-circle", str(file), "its defaults name the file itself", file=file)
    tree, below = _read(file)
    merged: dict[str, Any] = {}
    for each in below:
        if each.optional and _file(each.option, config_dirs) is None:
            continue
        found = tree if each.option == "_self_" else numbers(each.option, config_dirs, (*above, file))
        for key in reversed(each.place):
            found = {key: found}
        merged = _merge(merged, found)
    return merged


def _file(option: str, config_dirs: tuple[str, ...]) -> Path | None:
    places = (folder / "model" / f"{option}.yaml" for folder in groups.folders(config_dirs))
    return next((path for path in places if path.is_file()), None)


def _read(file: Path) -> tuple[dict[str, Any], list[_Below]]:
    """An option's own keys, and what its defaults name: at the end the file itself, where they do not say where."""
    own = _Below("_self_", [])
    try:
        tree = yaml_of(file.read_bytes()) or {}
        below = [each for entry in tree.pop("defaults", None) or () if (each := _below(entry)) is not None]
    except (ValueError, TypeError, AttributeError, OSError) as error:  # the middle ones of what is no mapping, no list
        raise refuse("compose", str(file), "it is no config", detail=str(error)) from None
    return tree, below if own in below else [*below, own]


def _below(entry: Any) -> _Below | None:
    """What an entry of defaults names, in any form that Hydra reads; None of another group, or of keys beyond `model`.

    These are NAME, /model/NAME and {/model: NAME}, each with a package, as in /model/NAME@_here_. Without one, what is
    named from the root stands below a key `model` of the option: a package is counted from that of the file.
    """
    if isinstance(entry, dict):
        ((group, name),) = entry.items()
        group, at, package = str(group).partition("@")
        entry = "_none_" if name is None else f"{group}/{name}{at}{package}"
    said = str(entry)
    name, at, package = said.removeprefix("optional ").partition("@")
    option = name.removeprefix("/model/")
    if option == "_none_" or option.startswith("/") or " " in option:
        return None
    place = package.split(".") if at else ["model"] * (option != name)
    if place[:1] == ["_global_"]:
        if place[1:2] != ["model"]:
            return None
        place = place[2:]
    return _Below(option, [key for key in place if key not in ("_here_", "_group_")], said.startswith("optional "))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merge(below[name], value) for name, value in above.items() if _nested(below.get(name), value)}
    return {**below, **above, **both}


def _nested(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)


def rows(words: tuple[str, ...] = (), config_dirs: tuple[str, ...] = ()) -> list[Row]:
    """The options in which every word occurs: in name, path, family or licence, or as `vision`, `audio` or `gated`."""
    base = numbers("_base")
    found = [
        _row(option, _merge(base, numbers(option, config_dirs))) for option in groups.options("model", config_dirs)
    ]
    chosen = [row for row in found if all(word.lower() in _text(row) for word in words)]
    if not chosen:
        hint = did_you_mean(words[-1], [row.option for row in found] + [row.family for row in found])
        raise refuse("no-such-model", " ".join(words), "no model option has all of these words", hint=hint)
    return sorted(chosen, key=lambda row: (row.family, row.parameters or 0, row.option))


def _row(option: str, tree: dict[str, Any]) -> Row:
    """Of keys of which an option of the user's own may have set any to anything."""
    config, reach = tree["architecture"], tree["context_length"]
    try:
        arch = architecture(config if isinstance(config, dict) else {})
    except UserError:  # an option of the user's own that names a folder: its numbers are read when it is planned
        arch = None
    media = set(media_of(arch)) if arch else set[str]()
    return Row(
        option=option,
        path=str(_path(tree) or ""),
        family=str(tree["family"] or ""),
        parameters=arch.parameters() if arch else None,
        context_length=reach if isinstance(reach, int) and reach else arch.context_length if arch else None,
        template=str(tree["template"]),
        license=str(tree["license"] or ""),
        gated=bool(tree["gated"]),
        vision=not media.isdisjoint(("images", "videos")),
        audio="audios" in media,
    )


def _path(tree: dict[str, Any]) -> str:
    return tree["hub"] if tree["path"] == "${model.hub}" else tree["path"]


def option_of(path: object) -> str | None:
    """The packaged option of a model's path."""
    return _by_path().get(path) if isinstance(path, str) else None


@cache
def _by_path() -> dict[str, str]:
    """Without the options' numbers: those of all take half a second more."""
    return {_path(numbers(option)): option for option in reversed(groups.options("model"))}


def _text(row: Row) -> str:
    return " ".join((row.option, row.path, row.family, row.license, *_marks(row))).lower()


def _marks(row: Row) -> list[str]:
    return [word for word in ("vision", "audio", "gated") if getattr(row, word)]


def as_json(found: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in found]


def table(rows: list[Row], *, width: int) -> "Table":
    """The model options, a line each, their names whole; what there is no room for is left out and told."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from factory.run.screen import fitting

    cells = [_cells(row) for row in rows]
    widths = {name: max(len(name), *(len(Text.from_markup(each[name])) for each in cells)) for name in cells[0]}
    del widths["hub"]
    kept = [*fitting(widths, width, _LEAST, gap=3), *(["hub"] if width >= _WIDE else [])]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model=", overflow="fold", min_width=min(widths["model="], width))
    for name in kept[1:]:
        table.add_column(name, no_wrap=True, justify="right" if name in ("parameters", "context") else "left")
    for each in cells:
        table.add_row(*(each[name] for name in kept))
    left_out = [name for name in widths if name not in kept]
    count = f"{len(rows)} options, {len({row.family for row in rows})} families"
    table.caption = "\n".join([count, *([not_shown(left_out)] if left_out else [])])
    return table


def _cells(row: Row) -> dict[str, str]:
    marks = "".join(f" {word}" for word in _marks(row))
    return {
        "model=": row.option,
        "parameters": f"{row.parameters / 1e9:,.2f} B" if row.parameters else "?",
        "context": f"{row.context_length:,}" if row.context_length else "?",
        "template": row.template,
        "licence": f"{row.license}[dim]{marks}[/dim]",
        "hub": row.path,
    }
