"""What a function or a server gives for scores."""

from collections.abc import Iterable
from math import isfinite, nan
from numbers import Real
from typing import Any

from factory.config.refusal import refuse

_FLOAT32 = 3.4028234663852886e38  # the largest: rewards are computed with in it


def scores(
    given: Any,
    count: int,
    setting: str,
    *,
    unscored: bool = False,
    rule: str = "reward-values",
    largest: float = _FLOAT32,
) -> list[float]:
    """`count` finite numbers, of `largest` at most; with `unscored` None is one too, and becomes nan.

    Raises UserError, by `rule`'s words.
    """
    tolist = getattr(given, "tolist", None)  # of an array or a tensor
    values = tolist() if callable(tolist) else given
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
        raise refuse(rule, setting, f"it gave {type(given).__name__}, not a list of numbers")
    values = list(values)
    if len(values) != count:
        raise refuse(rule, setting, f"it gave {len(values)} scores for {count} answers")
    for number, value in enumerate(values, start=1):
        if unscored and value is None:
            continue
        wrong = f"the score of answer {number} of {count} is {value!r}"
        if not _is_finite(value):
            raise refuse(rule, setting, wrong)
        if abs(value) > largest:
            raise refuse(rule, setting, f"{wrong}, which in float32 is infinite")
    return [nan if value is None else float(value) for value in values]


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
