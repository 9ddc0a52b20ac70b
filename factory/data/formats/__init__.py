"""Rows to the standard record (the paper, section 4.2, Table 3): the format is found from columns and first rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from factory.data.formats import shapes, turns
from factory.data.formats.shapes import Align
from factory.data.formats.turns import Tags
from factory.data.formats.values import Row
from factory.data.read.wrong import Broken
from factory.data.record import EMPTY, BadRow, Kind, Record, RowKind

__all__ = [
    "FORMATS",
    "STANDARD",
    "TAGS",
    "BadRow",
    "Format",
    "Kind",
    "Record",
    "align",
    "judged",
    "read_of",
    "recognise",
    "rename",
    "without_prompt",
]

_QUESTION = shapes.INSTRUCTION | {"input"}  # what a row with an instruction may have besides


@dataclass(frozen=True, slots=True)
class Format:
    """`needs` are the sets of columns of which a row must have one whole, `more` those that it may have besides."""

    kind: RowKind
    needs: tuple[tuple[str, ...], ...]
    align: Align
    more: frozenset[str] = shapes.COMMON

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that it needs in any case."""
        return tuple(name for name in self.needs[0] if all(name in needed for needed in self.needs))

    def lacks(self, columns: set[str]) -> set[str]:
        """What is missing from the columns, at the least."""
        return min((set(needed) - columns for needed in self.needs), key=len)

    def reads(self, row: Row) -> frozenset[str]:
        """The columns that it reads of such a row: of several sets that the row has, the first that is filled."""
        apart = _apart(self.needs)
        needed = max(apart, key=lambda each: (all(map(row.get, apart[each])), apart[each] <= row.keys()))
        return _beside(needed, self.more)


# both are asked for each row
@cache
def _apart(needs: tuple[tuple[str, ...], ...]) -> dict[tuple[str, ...], frozenset[str]]:
    """By each set of columns, those that tell it from the others."""
    common = frozenset(needs[0]).intersection(*needs)
    return {needed: frozenset(needed) - common for needed in needs}


@cache
def _beside(needed: tuple[str, ...], more: frozenset[str]) -> frozenset[str]:
    return (more if "instruction" in needed else more - (_QUESTION - shapes.COMMON)).union(needed)


_LABELLED = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"))

# where several fit and align as many of the first rows, the first is taken
FORMATS: dict[str, Format] = {
    "sharegpt_pairs": Format(
        "pairs",
        (("conversations", "chosen", "rejected"), ("messages", "chosen", "rejected")),
        shapes.sharegpt_pairs,
    ),
    "alpaca_pairs": Format("pairs", (("instruction", "chosen", "rejected"),), shapes.alpaca_pairs, _QUESTION),
    "transcripts": Format("pairs", (("chosen", "rejected"),), shapes.transcripts, shapes.COMMON | {"prompt"}),
    "pairs": Format("pairs", (("prompt", "chosen", "rejected"),), shapes.pairs),
    "messages_pairs": Format("pairs", (("chosen", "rejected"),), shapes.messages_pairs),
    "kto": Format("labelled", tuple(("label", *columns) for columns in _LABELLED), shapes.labelled, _QUESTION),
    "alpaca": Format("messages", (("instruction", "output"),), shapes.alpaca, _QUESTION),
    "sharegpt": Format("messages", (("conversations",),), shapes.conversation("conversations")),
    "messages": Format("messages", (("messages",),), shapes.conversation("messages")),
    "prompt_completion": Format("messages", (("prompt", "completion"),), shapes.prompt_completion),
    "prompts": Format(
        "prompts",
        tuple((column,) for column in shapes.ASKED),
        shapes.prompts,
        _QUESTION | {"solution"},
    ),
    "text": Format("text", (("text",),), shapes.plain, frozenset()),
}
_JUDGED, _PROMPTS = "kto", "prompts"
# every column that some format reads, the optional ones included
STANDARD = {column for found in FORMATS.values() for columns in (found.more, *found.needs) for column in columns}
TAGS = frozenset(["role_tag", "content_tag", *turns.TAGS])


def align(row: Row, format: str, columns: dict[str, str], tags: Tags) -> Record:
    """The row's record; raises BadRow, and nothing else, where the format does not allow it."""
    if isinstance(row, Broken):
        raise BadRow(row.reason)
    try:
        return FORMATS[format].align(rename(row, columns), tags)
    except RecursionError:
        raise BadRow("it is nested too deeply") from None


def read_of(row: Row, format: str, columns: dict[str, str]) -> Row:
    """What the format reads of the row, by its own names: with another id beside it, say, it is the same row."""
    if isinstance(row, Broken):
        return row
    row = rename(row, columns)
    read = FORMATS[format].reads(row)
    return row if read.issuperset(row) else {name: value for name, value in row.items() if name in read}


def recognise(
    columns: set[str], first_rows: Sequence[Row], kinds: Collection[str], tags: Tags | None = None
) -> str | None:
    """The format that has its columns, takes any of the first rows, is of a wanted kind, and takes the most of them.

    What comes first counts first, and broken rows are still known by their columns. The rows have their standard
    columns' names. Where no row tells, the format with more columns is the more telling one. Where a label is needed
    and there is one, it is what is read, whatever it says: else nobody was told what is wrong with it. Prompts alone
    are what no other format but plain text takes half of: most rows of others have a prompt too.
    """
    if "labelled" in kinds and not FORMATS[_JUDGED].lacks(columns):
        return _JUDGED
    taken = {name: sum(_aligns(name, row, tags or {}) for row in first_rows) for name in _fitting(columns)}
    others = max((count for name, count in taken.items() if name not in (_PROMPTS, "text")), default=0)
    if _PROMPTS not in kinds or 2 * others > taken.get(_PROMPTS, 0):
        taken.pop(_PROMPTS, None)

    def rank(name: str) -> tuple[bool, bool, int]:
        found = FORMATS[name]
        if aligned := taken[name]:
            return False, found.kind not in kinds, -aligned
        return True, found.kind not in kinds, -max(len(needed) for needed in found.needs if set(needed) <= columns)

    return min(taken, key=rank, default=None)


def _fitting(columns: set[str]) -> list[str]:
    return [name for name, found in FORMATS.items() if not found.lacks(columns)]


def judged(columns: set[str], first_rows: Sequence[Row], tags: Tags | None = None) -> str | None:
    """The format of rows that say of their answers whether they are wanted, as most do; None where they are others.

    A label may be anything's: a class of texts has more than two values, and is none of ours.
    """
    fitting = [name for name in _fitting(columns) if name != _PROMPTS]
    if _JUDGED not in fitting:
        return None
    taken = {name: sum(_aligns(name, row, tags or {}) for row in first_rows) for name in fitting}
    return _JUDGED if 2 * taken[_JUDGED] > max(taken.values()) else None


def without_prompt(first_rows: Sequence[Row], tags: Tags | None = None) -> bool:
    """Whether rows that were recognised as transcripts are pairs of answers, to prompts that no standard column has."""
    reasons = {_reason("transcripts", row, tags or {}) for row in first_rows}
    said = {reason for reason in reasons if not (reason or "").endswith(EMPTY)}
    return bool(said) and all(reason and reason.endswith(shapes.NO_SPEAKER) for reason in said)


def _reason(format: str, row: Row, tags: Tags) -> str | None:
    try:
        align(row, format, {}, tags)
    except BadRow as error:
        return str(error)
    return None


def _aligns(format: str, row: Row, tags: Tags) -> bool:
    return _reason(format, row, tags) is None


def rename(row: Row, columns: dict[str, str]) -> Row:
    """The row with the user's columns under their standard names."""
    if not columns:
        return row
    mapped = {standard: row[own] for standard, own in columns.items() if own in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | mapped
