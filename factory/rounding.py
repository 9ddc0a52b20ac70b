"""From float32 into 16 bits so that what training has added is not lost.

Published weights lie on bfloat16's own grid. A change of less than half a step of that grid, as most changes of an
adapter or of a short run are, is rounded back to where it came from, in every weight. Rounded up or down by chance, as
often as it is near, it is all there on the average (stochastic rounding; Gupta et al. 2015, arXiv 1502.02551, section
3.1).
"""

import torch
from torch import Tensor

_PIECE = 2**18  # elements at once


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Any shape, in `dtype`, on any device; the same value is always rounded alike. What `dtype` has stays as it is.

    In a type that is not narrower nothing is rounded. A number beyond float16's largest becomes infinite, as by `to`.
    """
    made = value.to(dtype, memory_format=torch.contiguous_format)
    if made.element_size() != 2 or value.element_size() <= 2:
        return made
    given, flat = value.detach().reshape(-1), made.view(-1)
    generator = torch.Generator().manual_seed(int(flat[:64].view(torch.int16).sum()))
    for wide, near in zip(given.split(_PIECE), flat.split(_PIECE), strict=True):
        nearest = near.to(wide.dtype)
        missing = wide - nearest
        outward = (missing < 0) == (wide < 0)
        other = outward.to(torch.int16).mul_(2).sub_(1).add_(near.view(torch.int16)).view(dtype)
        gap = nearest.sub_(other).abs_()
        taken = torch.rand(gap.shape, generator=generator).to(gap.device).mul_(gap) < missing.abs_()
        near.copy_(torch.where(taken, other, near))
    return made


def settle(value: Tensor, dtype: torch.dtype) -> None:
    """Gives the tensor numbers that `dtype` has, in its place and its type."""
    rows = torch.atleast_1d(value.detach())
    for piece in rows.split(max(1, _PIECE * len(rows) // max(1, rows.numel()))):
        piece.copy_(rounded(piece, dtype))
