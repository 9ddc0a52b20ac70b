"""What a function or a server gives for scores."""

from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite, nan
from numbers import Real
from typing import Any

from factory.config.refusal import UserError, refuse

_FLOAT32 = 3.4028234663852886e38  # the largest: rewards are computed with in it

_REFUSED = partial(
    refuse,
    "reward-values",
    because="each answer needs one finite number",
    fix="correct what stage.reward or stage.reward_model names",
)


def scores(
    given: Any,
    count: int,
    setting: str,
    *,
    unscored: bool = False,
    refused: Callable[[str, str], UserError] = _REFUSED,
    largest: float = _FLOAT32,
) -> list[float]:
    """`count` finite numbers, of `largest` at most; with `unscored` None is one too, and becomes nan.

    Raises UserError, made by `refused` of the setting and what is wrong.
    """
    tolist = getattr(given, "tolist", None)  # of an array or a tensor
    values = tolist() if callable(tolist) else given
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
        raise refused(setting, f"it gave {type(given).__name__}, not a list of numbers")
    values = list(values)
    if len(values) != count:
        raise refused(setting, f"it gave {len(values)} scores for {count} answers")
    for number, value in enumerate(values, start=1):
        if unscored and value is None:
            continue
        wrong = f"the score of answer {number} of {count} is {value!r}"
        if not _is_finite(value):
            raise refused(setting, wrong)
        if abs(value) > largest:
            raise refused(setting, f"{wrong}, which in float32 is infinite")
    return [nan if value is None else float(value) for value in values]


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
