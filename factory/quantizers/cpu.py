"""bitsandbytes 0.50 on a CPU reads 4-bit weights wrongly where a row ends inside a block: this reads them rightly.

Its vectorized kernel counts the blocks of a row as if each row began with a new one. Seen where the inputs are a
multiple of 16 and not of 64 (SigLIP's 4,304): the error is 0.2 to 0.4 of the weights' norm instead of 0.09.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

_KERNEL = "bitsandbytes::dequantize_4bit"


@cache
def read_blocks_across_rows() -> None:
    """The same weights in rows of one block each, which the kernel reads rightly, then in their own shape again."""
    import bitsandbytes  # registers the kernel
    import torch

    assert bitsandbytes
    original = torch.library.get_kernel(_KERNEL, "CPU")

    def dequantize(keys: Any, a: Any, absmax: Any, block: int, kind: str, shape: Sequence[int], dtype: Any) -> Any:
        size = prod(shape)
        ends_inside = shape[-1] % block and not size % block
        read = original.call_boxed(
            keys, a, absmax, block, kind, (size // block, block) if ends_inside else shape, dtype
        )
        return read.reshape(shape)

    _LIBRARIES.append(torch.library.Library("bitsandbytes", "IMPL"))
    with warnings.catch_warnings(action="ignore"):  # that a kernel is overridden, which is the point
        _LIBRARIES[0].impl("dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True)


_LIBRARIES: list[Any] = []  # a library's kernels live as long as it does
