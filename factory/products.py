"""Products of matrices of bfloat16 by way of float32, for a CPU that multiplies that faster (docs/measurements.md).

A product of two numbers of bfloat16 is exact in float32, where a CPU that multiplies bfloat16 adds up as well: what
is made differs by the order of a sum. A weight is wide in pieces, and only while it is multiplied with.

Products go into tensors that are there (`out`), as autocast leaves the types of such.
"""

import torch
from torch import Tensor

from factory import chunks
from factory.look import cpu
from factory.native import kernels

_FEW = 8  # of 16 and more it takes as long
_in_use = _emulated = False


def use(wanted: bool) -> None:
    """Whether this process multiplies so from now on."""
    global _in_use, _emulated
    _in_use, _emulated = wanted, not cpu.has_bf16()


def used() -> bool:
    return _in_use


def through(dtype: torch.dtype, x: Tensor) -> torch.dtype:
    """The type to multiply x, (…, in), in where what is wanted is of `dtype`."""
    there = _in_use and dtype == torch.bfloat16 and x.device.type == "cpu"
    return torch.float32 if there and chunks.widened(x.numel() // x.shape[-1], emulated=_emulated) else dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in x's type: (…, out)."""
    made = x.new_empty(*x.shape[:-1], len(weight))  # torch's own is a view here, which may not be changed in place
    _linear(x.reshape(-1, x.shape[-1]), weight, bias, made.view(-1, len(weight)))
    return made


def logits(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """x Wᵀ in `out`: (rows, words), of x's type."""
    return _linear(x, weight, None, out)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if through(x.dtype, x) == x.dtype:
        turned = weight.to(x.dtype).T
        return _multiply(x, turned, out) if bias is None else torch.addmm(bias.to(x.dtype), x, turned, out=out)
    wide = x.float()
    for part in _pieces(torch.float32, weight):
        product = _multiply(wide, weight[part].float().T, wide.new_empty(len(wide), len(weight[part])))
        out[:, part] = product if bias is None else product.add_(bias[part])
    return out


def add(onto: Tensor, x: Tensor, weight: Tensor) -> None:
    """onto += x Wᵀ. onto: (rows, out), x: (rows, in), both of the type that is multiplied in; W: (out, in)."""
    if _whole(onto.dtype, weight):
        _multiply(x, weight.to(x.dtype).T, onto, onto=True)
        return
    for part in _pieces(onto.dtype, weight):
        _multiply(x, weight[part].to(x.dtype).T, onto[:, part], onto=True)


def back(slope: Tensor, weight: Tensor) -> Tensor:
    """s W: (rows, in), of the type that is multiplied in, for s: (rows, out)."""
    kind = through(slope.dtype, slope)
    made = slope.new_empty(len(slope), weight.shape[1], dtype=kind)
    for part in _pieces(kind, weight):
        _multiply(slope[:, part].to(kind), weight[part].to(kind), made, onto=part.start > 0)
    return made


def add_back(onto: Tensor, slope: Tensor, weight: Tensor) -> None:
    """onto += s W. onto: (rows, in), s: (rows, out), both of the type that is multiplied in; W: (out, in)."""
    if _whole(onto.dtype, weight):
        _multiply(slope, weight.to(onto.dtype), onto, onto=True)
        return
    for part in _pieces(onto.dtype, weight):
        _multiply(slope[:, part], weight[part].to(onto.dtype), onto, onto=True)


def _multiply(a: Tensor, b: Tensor, into: Tensor, *, onto: bool = False) -> Tensor:
    """a b in `into`, or added `onto` what that is; all in one type."""
    if not kernels.multiply_shared(a, b, into, onto=onto):
        into.addmm_(a, b) if onto else torch.mm(a, b, out=into)
    return into


def by_weight(slope: Tensor, x: Tensor) -> Tensor:
    """sᵀ x: (out, in), of the type that is multiplied in."""
    kind = through(x.dtype, x)
    return mm(slope.T.to(kind), x.to(kind))


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a b, in their own type.

    On a CPU few columns of float32 are laid out one after another, which takes a third of the time
    (docs/measurements.md).
    """
    rows, columns = a.shape[0], b.shape[1]
    apart = columns <= _FEW and a.dtype == torch.float32 and a.device.type == "cpu"
    return torch.mm(a, b, out=a.new_empty(columns, rows).T if apart else a.new_empty(rows, columns))


def _whole(kind: torch.dtype, weight: Tensor) -> bool:
    """Whether nothing is made wide: a narrow sum is rounded once. Slices that are all of it take their time too."""
    return kind != torch.float32 or kind == weight.dtype


def _pieces(kind: torch.dtype, weight: Tensor) -> list[slice]:
    rows = weight.shape[0]
    step = max(1, rows) if _whole(kind, weight) else chunks.PIECE
    return [slice(start, start + step) for start in range(0, rows, step)]
