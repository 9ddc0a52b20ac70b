"""A metric of the user's: `module:function`, called with those of prompts, answers and references that it names."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from factory.config import function
from factory.config.refusal import UserError, refuse
from factory.rewards.checked import scores

_metric_function = partial(
    refuse,
    "metric-function",
    because="every answer needs one finite number",
    fix=(
        "correct the function: it is called with those of prompts, answers and references (lists of texts) that it "
        "names, and returns a list of numbers, one per answer"
    ),
)
# (prompts, answers, references), all texts → a number each
Score = Callable[[list[str], list[str], list[str]], list[float]]


def metric(path: str) -> Score:
    """Imports the function. Raises UserError where it cannot be had, and later where it gives no numbers."""
    setting = f"evaluate.metrics={path}"
    found = _said(setting, lambda: function.imported(path))
    taken = function.taken(found)

    def score(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
        given = {"prompts": prompts, "answers": answers, "references": references}
        named = {name: texts for name, texts in given.items() if taken is None or name in taken}
        values = _said(setting, lambda: function.called(path, "it raised", lambda: found(**named)))
        return scores(values, len(answers), setting, refused=_metric_function, largest=inf)

    return score


def _said(setting: str, call: Callable[[], Any]) -> Any:
    """What the call gives; what is wrong with the function is said of the metric, not of rows."""
    try:
        return call()
    except UserError as error:
        raise _metric_function(setting, error.refusals[0].wrong) from None
