"""Nothing is trained: the model as it is, or with a saved adapter of any method; what is only evaluated."""

from factory.architecture import Architecture, Shape
from factory.config.settings import Method


class Settings(Method):
    pass


ANY_ADAPTER = True


def trainable(method: Settings, arch: Architecture) -> dict[str, Shape]:
    return {}


def optimizer_bytes(method: Settings, optimizer: str, shapes: dict[str, Shape], arch: Architecture, size: int) -> int:
    return 0


def trains_over(method: Settings, library: str, bits: int) -> bool:
    return True
