"""What `evaluate.metrics` names, as values. No torch."""

import re
from dataclasses import dataclass
from typing import Literal

from factory.metrics.text import METRICS

__all__ = ["METRICS", "Named", "named", "shown"]
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Named:
    """`name`: one of METRICS, or module:function."""

    kind: Literal["own", "function"]
    name: str


def named(text: str) -> Named | None:
    """None where it is of no known form."""
    if text in METRICS:
        return Named("own", text)
    return Named("function", text) if _FUNCTION.fullmatch(text) else None


def shown(text: str) -> str:
    """What a metric is called in the report: of module:function the function."""
    return text.rpartition(":")[2]
