"""From float32 into 16 bits so that what training has added is not lost.

Published weights lie on bfloat16's own grid. A change of less than half a step of that grid, as most changes of an
adapter or of a short run are, is rounded back to where it came from, in every weight. Rounded up or down by chance, as
often as it is near, it is all there on the average (stochastic rounding; Gupta et al. 2015, arXiv 1502.02551, section
3.1).
"""

import torch
from torch import Tensor

_PIECES = {"cpu": 2**18}  # elements at once: a core's own cache holds them
_PIECE = 2**22  # of a card, which is told of each operation
_GOLDEN = -0x61C88647  # 2**32 by the golden ratio, with a sign: a place's neighbours are far from it


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Any shape, in `dtype`. The same value is always rounded alike, on every device. What `dtype` has stays as it is.

    In a type that is not narrower nothing is rounded. A number beyond float16's largest becomes infinite, as by `to`.
    Nothing waits for the device.
    """
    made = value.to(dtype, memory_format=torch.contiguous_format)
    if made.element_size() != 2 or value.element_size() <= 2:
        return made
    given, flat = value.detach().reshape(-1), made.view(-1)
    piece = _PIECES.get(value.device.type, _PIECE)
    for number, (wide, near) in enumerate(zip(given.split(piece), flat.split(piece), strict=True)):
        nearest = near.to(wide.dtype)
        missing = wide - nearest
        outward = (missing < 0) == (wide < 0)
        other = outward.to(torch.int16).mul_(2).sub_(1).add_(near.view(torch.int16)).view(dtype)
        gap = nearest.sub_(other).abs_()
        taken = _chances(wide, number * piece).mul_(gap) < missing.abs_()
        near.copy_(torch.where(taken, other, near))
    return made


def _chances(value: Tensor, start: int) -> Tensor:
    """Uniform in [0, 1): a hash of each number's bits and of its place, the first of which is `start`.

    The shifts and factors are of Wellons's search for hashes of 32 bits (github.com/skeeto/hash-prospector), here on
    numbers with a sign.
    """
    before = (start * _GOLDEN + 2**31) % 2**32 - 2**31
    place = torch.arange(value.numel(), dtype=torch.int32, device=value.device).mul_(_GOLDEN).add_(before)
    bits = value.to(torch.float32, copy=True).view(torch.int32).bitwise_xor_(place)
    for shift, factor in ((16, 0x21F0AAAD), (15, -0x2CA5D269), (15, 1)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return bits.bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2**-24)


def settle(value: Tensor, dtype: torch.dtype) -> None:
    """Gives the tensor numbers that `dtype` has, in its place and its type."""
    rows = torch.atleast_1d(value.detach())
    for piece in rows.split(max(1, _PIECES["cpu"] * len(rows) // max(1, rows.numel()))):
        piece.copy_(rounded(piece, dtype))
