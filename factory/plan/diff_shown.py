"""Two plans side by side, as a person reads it: by the names that one sets, in a terminal's width."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from factory.config.values import whole
from factory.config.words import duration, rate, size
from factory.plan.diff import ABSENT, Difference, Differences, shown, verdict
from factory.plan.keys import as_set

_TITLES = {
    "asked": "asked for",
    "decisive": "decides the result",
    "versions": "versions of packages",
    "rest": "changes no result",
}
_KEY_WIDTH = 40  # columns that keys share; of a longer one the values stand below it
_FOLDED = 3  # keys that only one plan has, from which on they are told together
_UNSET = (None, "", [], {})
# parts of the estimate that say no more than their sums; nor do those that are written alike
_ASIDE = ("estimate.memory.instants.", "estimate.parameters.trainable_by_module.")


def _count(number: float) -> str:
    return f"{number:,}"


# numbers as the plan's screen writes them; those that a user sets are as they are set
_WRITTEN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("estimate.memory.*", size),
    ("estimate.seconds.*", duration),
    ("estimate.speed.start_seconds", duration),
    ("estimate.speed.*", lambda each: f"{rate(each)} tokens/s"),
    ("estimate.flops_per_step", lambda flops: f"{rate(flops / 1e9)} GFLOP"),
    ("estimate.*", _count),
    ("attach.trainable", _count),
    ("align.sources.*.bytes", lambda count: f"{_count(count)} bytes"),
    ("export.bytes", size),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key with what stands behind it, if that fits, and else below it."""

    key: str
    beside: str | None
    below: tuple[str, ...]


def as_text(found: Differences, names: tuple[str, str], width: int) -> str:
    lines = [f"{digest}  {name}" for digest, name in zip(found.digests, names, strict=True)]
    for group, title in _TITLES.items():
        lines += _section(title, getattr(found, group), width)
    return "\n".join([*lines, *textwrap.wrap(verdict(found), width)])


def _section(title: str, group: Sequence[Difference], width: int) -> Iterator[str]:
    if not group:
        return
    yield title
    told = [each for each in group if not _is_aside(each)]
    entries = list(dict.fromkeys(_entries(told)))
    keys = max((len(each.key) for each in entries if each.beside and len(each.key) <= _KEY_WIDTH), default=0)
    for each in entries:
        line = f"  {each.key:<{keys}}  {each.beside}"
        if each.beside is not None and len(line) <= width:
            yield line
            continue
        yield f"  {each.key}"
        for text in each.below:
            yield from _within(text, width)
    if aside := len(group) - len(told):
        yield from _within(f"and {aside} more parts of the estimate: plan.format=json has them", width, indent="  ")


def _is_aside(each: Difference) -> bool:
    alike = _written(each.key, each.one) == _written(each.key, each.other)
    return each.key.startswith(_ASIDE) or (each.key.startswith("estimate.") and alike)


def _within(text: str, width: int, indent: str = "    ") -> list[str]:
    """Lines that end between words: a path or a hash can be copied whole."""
    more = f"{indent}  "
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )


def _entries(group: Sequence[Difference]) -> Iterator[_Entry]:
    for (parent, alone), several in groupby(group, key=_together):
        each = list(several)
        if alone and len(each) >= _FOLDED and parent and not parent.startswith("estimate."):
            yield _folded(each)
        else:
            yield from (_entry(one) for one in each if not _is_implied(one, group))


def _together(each: Difference) -> tuple[str, str]:
    """What stands above the key, and the sign of the only plan that has it."""
    alone = "-" if each.other == ABSENT else "+" if each.one == ABSENT else ""
    return each.key.rpartition(".")[0], alone


def _is_implied(each: Difference, group: Sequence[Difference]) -> bool:
    """A null in whose place the other plan has keys, which are told."""
    nothing = sorted(map(str, (each.one, each.other))) == sorted((str(None), ABSENT))
    return nothing and any(other.key.startswith(f"{each.key}.") for other in group)


def _folded(several: Sequence[Difference]) -> _Entry:
    """Of keys that only one plan has, what they are set to."""
    sign = _together(several[0])[1]
    values = [(each.key, each.one if sign == "-" else each.other) for each in several]
    told = [f"{key.rpartition('.')[2]}={shown(value)}" for key, value in values if value not in _UNSET]
    return _Entry(as_set(several[0].key).rpartition(".")[0], None, (f"{sign} {' '.join(told) or '(nothing is set)'}",))


def _entry(each: Difference) -> _Entry:
    name = as_set(each.key)
    if _is_texts(each.one) and _is_texts(each.other):
        return _Entry(name, None, tuple(_changed(each.one, each.other)))
    one, other = _written(each.key, each.one), _written(each.key, each.other)
    if one == other:  # what is written short
        one, other = whole(each.one), whole(each.other)
    return _Entry(name, f"{one} -> {other}", (one, f"-> {other}"))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _changed(one: list[str], other: list[str]) -> Iterator[str]:
    """What was taken out of a list, and what was put in."""
    out, new = Counter(one) - Counter(other), Counter(other) - Counter(one)
    yield from (f"- {each}" for each in out.elements())
    yield from (f"+ {each}" for each in new.elements())
    if not out and not new:
        yield f"the same in another order: {' '.join(other)}"


def _written(key: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        how = next((how for pattern, how in _WRITTEN if fnmatchcase(key, pattern)), None)
        return whole(value) if how is None else how(value)
    return shown(value)
