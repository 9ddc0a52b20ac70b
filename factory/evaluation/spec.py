"""What `evaluate.metrics` names, as values. No torch."""

from functools import partial
from typing import Literal

from factory.benchmarks.types import NAMES as BENCHMARKS
from factory.config import function
from factory.config.refusal import refuse
from factory.metrics import METRICS

__all__ = ["METRICS", "kind", "not_finite", "shown", "taken"]
# what else is called so in a report, or in a comparison of two; a name with a stroke in it is no function's
_TAKEN = {*METRICS, *BENCHMARKS, "rouge", "perplexity", "loss", "reward", "kl", "response_length", "ended"}
_TAKEN |= {"generation", "benchmarks", "harness"}

not_finite = partial(
    refuse,
    "held-out-not-finite",
    because="nothing that is measured of such a model says anything",
    fix="lower stage.learning_rate, or set precision=fp32; before training, check the model itself with another",
)


def kind(text: str) -> Literal["own", "function"] | None:
    """Whether it is one of METRICS, or module:function; None where it is of no known form."""
    if text in METRICS:
        return "own"
    return "function" if function.is_named(text) else None


def shown(text: str) -> str:
    """What a metric is called in the report: of module:function the function."""
    return text.rpartition(":")[2]


def taken(text: str) -> bool:
    """Whether a function's figure would stand in another's place."""
    name = shown(text)
    return kind(text) == "function" and (name in _TAKEN or name.endswith("_before"))
