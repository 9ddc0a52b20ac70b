"""What `stage.reward` names, as a value."""

import re
from dataclasses import dataclass
from typing import Literal

from factory.config import function

Kind = Literal["function", "trl", "server"]

TRL_PREFIX = "trl:"
# TRL's reward functions that need no more than answers and what the data have for them, and what each imports
TRL: dict[str, tuple[str, ...]] = {
    "accuracy_reward": ("trl", "math-verify"),
    "reasoning_accuracy_reward": ("trl", "math-verify"),
    "think_format_reward": ("trl",),
}
_SERVER = re.compile(r"https?://\S+")


@dataclass(frozen=True, slots=True)
class Named:
    """`name`: module:function, a function of TRL's, or a server's address."""

    kind: Kind
    name: str


def named(text: str) -> Named | None:
    """None where it is of no known form."""
    if text.startswith(TRL_PREFIX):
        return Named("trl", text.removeprefix(TRL_PREFIX))
    if _SERVER.fullmatch(text):
        return Named("server", text)
    return Named("function", text) if function.is_named(text) else None
