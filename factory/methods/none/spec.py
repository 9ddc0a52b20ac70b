"""Nothing is trained: the model as it is, or with a saved adapter of any method; what is only evaluated."""

from factory.architecture import Architecture, Shape
from factory.config.settings import Method
from factory.plan.rule import Case, Rule


class Settings(Method):
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
