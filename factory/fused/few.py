"""The small products beside a frozen layer's: with LoRA's A, (rank, in), and B, (out, rank).

In C where that is faster, each one pass over what it reads or makes; there A, B and what is in between, x Aᵀ and its
slopes, are of float32 where they are made. Else torch's, in the type that is multiplied in. Rows are (tokens, width).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from factory import products
from factory.native import kernels

_MOST = 16  # ranks of a layer: with more torch's are as fast (docs/measurements.md)


class Torch:
    """torch's."""

    @staticmethod
    def between(low: Tensor, kind: torch.dtype) -> Tensor:
        """What was kept of `down`, in the type that it is multiplied in beside rows of `kind`."""
        return low.to(kind)

    @staticmethod
    def down(x: Tensor, every_a: Sequence[Tensor]) -> Tensor:
        """x Aᵀ of all: (tokens, ranks)."""
        return products.mm(x, _joined(every_a, x.dtype).T)

    @staticmethod
    def up(low: Tensor, b: Tensor, scale: float, into: Tensor) -> None:
        """s low Bᵀ: (tokens, out)."""
        torch.addmm(into, low, b.to(into.dtype).T, beta=0, alpha=scale, out=into)

    @staticmethod
    def by_low(slope: Tensor, b: Tensor, scale: float, into: Tensor) -> None:
        """s slope B: (tokens, rank)."""
        torch.mm(slope, b.to(slope.dtype), out=into).mul_(scale)

    @staticmethod
    def outer(low: Tensor, x: Tensor, scale: float, into: Tensor, *, turned: bool = False) -> None:
        """s lowᵀ x: (ranks, width), or `turned` (width, ranks)."""
        into.copy_(products.mm(x.T, low).mul_(scale) if turned else products.mm(low.T, x).mul_(scale))

    @staticmethod
    def by_x(by_low: Tensor, every_a: Sequence[Tensor], kind: torch.dtype) -> Tensor:
        """by_low A: (tokens, in)."""
        return products.mm(by_low, _joined(every_a, kind))


class InC(Torch):
    """native/few.c."""

    @staticmethod
    def between(low: Tensor, kind: torch.dtype) -> Tensor:
        return low.float()

    @staticmethod
    def down(x: Tensor, every_a: Sequence[Tensor]) -> Tensor:
        few = _joined(every_a, torch.float32)
        low = few.new_empty(len(x), len(few))
        kernels.few_down(x.contiguous(), few, 1.0, low)
        return low

    @staticmethod
    def up(low: Tensor, b: Tensor, scale: float, into: Tensor) -> None:
        kernels.few_up(low, b, scale, into, turned=True)

    @staticmethod
    def by_low(slope: Tensor, b: Tensor, scale: float, into: Tensor) -> None:
        kernels.few_down(slope.contiguous(), b, scale, into, turned=True)

    @staticmethod
    def outer(low: Tensor, x: Tensor, scale: float, into: Tensor, *, turned: bool = False) -> None:
        kernels.few_outer(low, x.contiguous(), scale, into, turned=turned)

    @staticmethod
    def by_x(by_low: Tensor, every_a: Sequence[Tensor], kind: torch.dtype) -> Tensor:
        few = _joined(every_a, torch.float32)
        made = few.new_empty(len(by_low), few.shape[1], dtype=kind)
        kernels.few_up(by_low, few, 1.0, made)
        return made


def way(x: Tensor, every_a: Sequence[Tensor], every_b: Sequence[Tensor]) -> type[Torch]:
    """The one for layers that read such x, of the type that is multiplied in; their slopes are of it too."""
    few = all(a.shape[0] <= _MOST for a in every_a)
    return InC if few and kernels.few_fit(x, every_a, every_b) else Torch


def _joined(every_a: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One below the other."""
    if len(every_a) == 1:
        return every_a[0].to(dtype)
    return torch.cat(tuple(every_a), out=every_a[0].new_empty(0, dtype=dtype))
