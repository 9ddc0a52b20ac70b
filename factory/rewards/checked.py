"""What a function or a server gives for scores."""

from collections.abc import Iterable
from math import isfinite, nan
from numbers import Real
from typing import Any

from factory.refusal import refuse


def scores(given: Any, count: int, setting: str, *, unscored: bool = False, rule: str = "reward-values") -> list[float]:
    """`count` finite numbers; with `unscored` None is one too, and becomes nan. Raises UserError, by `rule`'s words."""
    tolist = getattr(given, "tolist", None)  # of an array or a tensor
    values = tolist() if callable(tolist) else given
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
        raise refuse(rule, setting, f"it gave {type(given).__name__}, not a list of numbers")
    values = list(values)
    if len(values) != count:
        raise refuse(rule, setting, f"it gave {len(values)} scores for {count} answers")
    for number, value in enumerate(values, start=1):
        if not _is_finite(value) and not (unscored and value is None):
            raise refuse(rule, setting, f"the score of answer {number} of {count} is {value!r}")
    return [nan if value is None else float(value) for value in values]


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
