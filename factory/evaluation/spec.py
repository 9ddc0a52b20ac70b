"""What `evaluate.metrics` names, as values. No torch."""

import re
from typing import Literal

from factory.metrics import METRICS

__all__ = ["METRICS", "kind", "shown"]
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def kind(text: str) -> Literal["own", "function"] | None:
    """Whether it is one of METRICS, or module:function; None where it is of no known form."""
    if text in METRICS:
        return "own"
    return "function" if _FUNCTION.fullmatch(text) else None


def shown(text: str) -> str:
    """What a metric is called in the report: of module:function the function."""
    return text.rpartition(":")[2]
