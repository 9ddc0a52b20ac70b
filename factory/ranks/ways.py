"""How a model whose weights may be split is called, and gathered: what the steps ask for outside of an update."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Way:
    """Of a model that is whole in each process."""

    differentiates = (
        True  # whether a loss that is computed by `call` gives gradients to `backward` outside of an update
    )

    def call(self, function: Callable[[], Any]) -> Any:
        """What the function returns, the weights at hand: tensors, in tuples or dicts."""
        return function()

    @contextmanager
    def whole(self, model: Any, names: Iterable[str]) -> Iterator[None]:
        """On rank 0, these parameters are whole in the model for the time of the body."""
        yield
