"""Products of matrices of bfloat16 by way of float32, for a CPU that multiplies that faster (docs/measurements.md).

A product of two numbers of bfloat16 is exact in float32, where a CPU that multiplies bfloat16 adds up as well: what
is made differs by the order of a sum. A weight is wide in pieces, and only while it is multiplied with.

Products go into tensors that are there (`out`), as autocast leaves the types of such.
"""

import torch
from torch import Tensor
from torch.nn import functional

from factory import chunks

_in_use = False


def use(wanted: bool) -> None:
    """Whether this process multiplies so from now on."""
    global _in_use
    _in_use = wanted


def used() -> bool:
    return _in_use


def through(dtype: torch.dtype, x: Tensor) -> torch.dtype:
    """The type to multiply x, (…, in), in where what is wanted is of `dtype`."""
    there = _in_use and dtype == torch.bfloat16 and x.device.type == "cpu"
    return torch.float32 if there and chunks.widened(x.numel() // x.shape[-1]) else dtype


def add(onto: Tensor, x: Tensor, weight: Tensor, *, beta: int = 1) -> None:
    """beta onto + x Wᵀ, in the place of `onto`, (rows, out). x: (rows, in), of its type; W: (out, in)."""
    for part in _pieces(onto, weight):
        onto[:, part].addmm_(x, weight[part].to(x.dtype).T, beta=beta)


def add_back(onto: Tensor, slope: Tensor, weight: Tensor, *, beta: int = 1) -> None:
    """beta onto + s W, in the place of `onto`, (rows, in), and of its type. s: (rows, out); W: (out, in)."""
    for part in _pieces(onto, weight):
        onto.addmm_(slope[:, part].to(onto.dtype), weight[part].to(onto.dtype), beta=beta)
        beta = 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in x's type: (…, out)."""
    wide = x.to(through(x.dtype, x))
    if wide is x:
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    made = wide.new_empty(*x.shape[:-1], len(weight))
    if bias is not None:
        made.copy_(bias)
    add(made.view(-1, len(weight)), wide.reshape(-1, x.shape[-1]), weight, beta=int(bias is not None))
    return made.to(x.dtype)


def logits(x: Tensor, table: Tensor, out: Tensor) -> Tensor:
    """x Wᵀ in `out`: (rows, words), of x's type."""
    wide = x.to(through(x.dtype, x))
    if wide is x:
        return torch.mm(x, table.T, out=out)
    for part in _pieces(wide, table):
        out[:, part] = mm(wide, table[part].to(wide.dtype).T)
    return out


def back(slope: Tensor, table: Tensor) -> Tensor:
    """s W: (rows, in), of the type that is multiplied in."""
    made = slope.new_empty(len(slope), table.shape[1], dtype=through(slope.dtype, slope))
    add_back(made, slope, table, beta=0)
    return made


def by_weight(slope: Tensor, x: Tensor) -> Tensor:
    """sᵀ x: (out, in), of the type that is multiplied in."""
    kind = through(x.dtype, x)
    return mm(slope.T.to(kind), x.to(kind))


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a b, in their own type."""
    return torch.mm(a, b, out=a.new_empty(len(a), b.shape[1]))


def _pieces(made: Tensor, weight: Tensor) -> list[slice]:
    """Whole where nothing is made wide: a narrow sum is rounded once."""
    widens = made.dtype == torch.float32 != weight.dtype
    step = chunks.PIECE if widens else max(1, len(weight))
    return [slice(start, start + step) for start in range(0, len(weight), step)]
