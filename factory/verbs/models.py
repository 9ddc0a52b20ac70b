"""The options of the group `model` as `factory models` lists them."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from factory.architecture import architecture, media_of
from factory.config import groups
from factory.config.models import merged, numbers
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


def rows(words: tuple[str, ...] = (), config_dirs: tuple[str, ...] = ()) -> list[Row]:
    """The options in which every word occurs: in name, path, family or licence, or as `vision`, `audio` or `gated`."""
    base = numbers("_base")
    found = [
        _row(option, merged(base, numbers(option, config_dirs))) for option in groups.options("model", config_dirs)
    ]
    chosen = [row for row in found if all(word.lower() in _text(row) for word in words)]
    if not chosen:
        hint = did_you_mean(words[-1], [row.option for row in found] + [row.family for row in found])
        raise refuse(
            "no-such-model",
            " ".join(words),
            "no model option has all of these words",
            because="`factory models` lists what has numbers of its own",
            fix=f"{hint}any other model works by model.path=",
        )
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
