"""What a function makes is made again by those that read it, of what it keeps anyway: they need not keep it too."""

from collections.abc import Callable

import torch
from torch import Tensor

Kept = tuple[Tensor, ...]


class Again:
    """Makes a function's output once more, of the tensors that the function keeps: who reads it need not keep it too.

    It is there from its first reader's backward pass to the function's own, which comes after all of theirs, and so is
    `half`, what the function needs there itself on the way to it. The tensors are handed in: who recomputes a layer has
    others in their place.
    """

    def __init__(self, make: Callable[..., tuple[Tensor | None, Tensor]]) -> None:
        """`make` gives the half, if there is one, and the output."""
        self._make = make
        self._made: tuple[Tensor | None, Tensor] | None = None

    def __call__(self, kept: Kept, dtype: torch.dtype) -> Tensor:
        if self._made is None or self._made[1].dtype != dtype:
            half, whole = self._make(*kept)
            self._made = half, whole.to(dtype)
        return self._made[1]

    def take(self) -> Tensor | None:
        """The half, if it was made; nothing is there any more."""
        half, self._made = None if self._made is None else self._made[0], None
        return half


def told(made: Tensor, again: Again, remade: bool, *given: Tensor) -> Tensor:
    """How it is made again is an attribute: who reads a copy, a slice or a sum of it finds none.

    It holds for what the tensor is now: in place it may become another.
    """
    if remade and made.requires_grad:
        made.again = made._version, again, tuple(each.detach() for each in given)  # type: ignore[attr-defined]
    return made


def reading(x: Tensor, narrow: Tensor) -> tuple[Again | None, Kept]:
    """What a linear function keeps of its input `x`, which it multiplies as `narrow`."""
    version, again, kept = getattr(x, "again", (None, None, ()))
    return (None, (narrow,)) if version is None or version != x._version else (again, kept)


def read(again: Again | None, kept: Kept, dtype: torch.dtype) -> Tensor:
    """The input, (tokens, in)."""
    x = kept[0] if again is None else again(kept, dtype)
    return x.reshape(-1, x.shape[-1])
