"""Nothing is trained: the model as it is, or with a saved adapter of any method; what is only evaluated."""

from dataclasses import dataclass

from factory.architecture import Architecture, Shape
from factory.config import schema
from factory.plan.rule import Case, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(schema.Method):
    pass


ANY_ADAPTER = True


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    return {}


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    return 0


def trains_over(method: Settings, library: str, bits: int) -> bool:
    return True


def _trains_nothing(case: Case) -> str | None:
    return "it trains nothing" if case.settings.verb == "train" else None


RULES = (Rule("method-none", _trains_nothing),)
