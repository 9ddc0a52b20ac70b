"""Products of matrices of bfloat16 by way of float32, for a CPU that multiplies that faster (docs/measurements.md).

A product of two numbers of bfloat16 is exact in float32, where a CPU that multiplies bfloat16 adds up as well: what
is made differs by the order of a sum. A weight is wide in pieces, and only while it is multiplied with.

Products go into tensors that are there (`out`), as autocast leaves the types of such.
"""

import torch
from torch import Tensor
from torch.nn import functional

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
    own = through(x.dtype, x) == x.dtype
    if own and (bias is None or x.dim() <= 2):
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    made = x.new_empty(*x.shape[:-1], len(weight))  # torch's own is a view here, which may not be changed in place
    if own:
        assert bias is not None
        torch.addmm(bias.to(x.dtype), x.reshape(-1, x.shape[-1]), weight.to(x.dtype).T, out=made.view(-1, len(weight)))
        return made
    _narrowed(x.reshape(-1, x.shape[-1]), weight, bias, made.view(-1, len(weight)))
    return made


def logits(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """x Wᵀ in `out`: (rows, words), of x's type."""
    if through(x.dtype, x) == x.dtype:
        return torch.mm(x, weight.T, out=out)
    return _narrowed(x, weight, None, out)


def _narrowed(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    wide = x.float()
    for part in _pieces(torch.float32, weight):
        product = mm(wide, weight[part].float().T)
        out[:, part] = product if bias is None else product.add_(bias[part])
    return out


def add(onto: Tensor, x: Tensor, weight: Tensor) -> None:
    """onto += x Wᵀ. onto: (rows, out), x: (rows, in), both of the type that is multiplied in; W: (out, in)."""
    if _whole(onto.dtype, weight):
        _add(onto, x, weight.to(x.dtype))
        return
    for part in _pieces(onto.dtype, weight):
        _add(onto[:, part], x, weight[part].to(x.dtype))


def back(slope: Tensor, weight: Tensor) -> Tensor:
    """s W: (rows, in), of the type that is multiplied in, for s: (rows, out)."""
    kind = through(slope.dtype, slope)
    first, *others = _pieces(kind, weight)
    made = mm(slope[:, first].to(kind), weight[first].to(kind))
    for part in others:
        made.addmm_(slope[:, part].to(kind), weight[part].to(kind))
    return made


def add_back(onto: Tensor, slope: Tensor, weight: Tensor) -> None:
    """onto += s W. onto: (rows, in), s: (rows, out), both of the type that is multiplied in; W: (out, in)."""
    if _whole(onto.dtype, weight):
        _add_back(onto, slope, weight.to(onto.dtype))
        return
    for part in _pieces(onto.dtype, weight):
        _add_back(onto, slope[:, part], weight[part].to(onto.dtype))


def _add(onto: Tensor, x: Tensor, weight: Tensor) -> None:
    if kernels.shared_fit(onto, x, weight):
        kernels.add_shared(onto, x, weight)
    else:
        onto.addmm_(x, weight.T)


def _add_back(onto: Tensor, slope: Tensor, weight: Tensor) -> None:
    if kernels.shared_fit(onto, slope, weight):
        kernels.add_shared(onto, slope, weight, back=True)
    else:
        onto.addmm_(slope, weight)


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
