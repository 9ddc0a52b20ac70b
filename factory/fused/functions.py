"""Norms, gated MLPs, linear layers and lookups, each one autograd function: what goes in is kept, and little is made.

Autograd keeps what each of an expression's operations needs: of an RMS norm its input in float32, of a gated MLP the
activation beside what it is of, of a linear layer its input and, where autocast narrows it, its weight once more. Here
that is made again from what is kept anyway. Of a lookup it makes a gradient as large as the whole table.

LoRA's layers are in `adapted`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from factory import products
from factory.fused.again import Again, read, reading, told
from factory.native import kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float, whole: bool, *, remade: bool = True) -> Tensor:
    """`RMSNorm`. `remade`: linear functions that read it make it again and do not keep it."""
    if not torch.is_grad_enabled():  # autograd's own way takes longer than the norm of a token
        return _rms_norm(x, weight, eps, whole)[0]
    again = Again(partial(_rms_norm_again, eps=eps, whole=whole))
    return told(RMSNorm.apply(x, weight, eps, whole, again), again, remade, x, weight)


def gated_silu(gate: Tensor, up: Tensor, *, remade: bool = True) -> Tensor:
    """`GatedSilu`. `remade`: linear functions that read it make it again and do not keep it."""
    if not torch.is_grad_enabled():
        return _gated_silu(gate, up)
    again = Again(_gated_silu_again)
    return told(GatedSilu.apply(gate, up, again), again, remade, gate, up)


class RMSNorm(Function):
    """n = x / sqrt(mean(x²) + eps) in float32 at least (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    x: (…, width); weight: (width). `whole`: n (1 + weight) in float32, rounded once (Gemma); else n is rounded to x's
    type, and that times the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, whole: bool, again: Again) -> Tensor:
        made, scale = _rms_norm(x, weight, eps, whole)
        ctx.save_for_backward(x, weight, scale)
        ctx.whole, ctx.again = whole, again
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        """d x = (s - n mean(s n)) / rms(x), where s is the gradient in n."""
        (slope,), (x, weight, scale) = slopes, ctx.saved_tensors
        half, by_weight = ctx.again.take(), None
        if _in_c(x, weight):
            by_weight = kernels.rms_norm_weight(x, scale, slope) if ctx.needs_input_grad[1] else None
            by_x = kernels.rms_norm_back(x, weight, scale, slope, ctx.whole) if ctx.needs_input_grad[0] else None
            return by_x, by_weight, None, None, None
        normed = _normed(x, scale) if half is None else half
        if ctx.needs_input_grad[1]:
            of_all = tuple(range(x.dim() - 1))
            of_n = normed if ctx.whole else normed.to(x.dtype)
            by_weight = (slope * of_n).sum(of_all).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None, None, None
        wide = normed.dtype
        inner = slope.to(wide) * (1 + weight.to(wide)) if ctx.whole else (slope * weight).to(wide)
        mean = torch.linalg.vecdot(normed, inner).div_(x.shape[-1]).unsqueeze(-1)
        return inner.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), by_weight, None, None, None


def _rms_norm(x: Tensor, weight: Tensor, eps: float, whole: bool) -> tuple[Tensor, Tensor]:
    """What `RMSNorm` makes, and 1 / rms(x): (…, 1)."""
    if _in_c(x, weight):
        return kernels.rms_norm(x, weight, eps, whole)
    scale = _inverse_rms(x, eps)
    return _weighed(_normed(x, scale), x.dtype, weight, whole), scale


def _rms_norm_again(x: Tensor, weight: Tensor, *, eps: float, whole: bool) -> tuple[Tensor | None, Tensor]:
    if _in_c(x, weight):
        return None, _rms_norm(x, weight, eps, whole)[0]
    normed = _normed(x, _inverse_rms(x, eps))
    apart = normed.clone() if whole or normed.dtype == x.dtype else normed
    return normed, _weighed(apart, x.dtype, weight, whole)


def _in_c(x: Tensor, weight: Tensor) -> bool:
    return weight.shape == x.shape[-1:] and kernels.fit(x, weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x.dtype)).square_()
    return squares.div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, scale: Tensor) -> Tensor:
    """n, in memory of its own."""
    wide = x.to(_wide(x.dtype))
    return wide * scale if wide is x else wide.mul_(scale)


def _weighed(normed: Tensor, dtype: torch.dtype, weight: Tensor, whole: bool) -> Tensor:
    """In the place of `normed` where the types allow it."""
    if whole:
        return normed.mul_(1 + weight.to(normed.dtype)).to(dtype)
    return _times(normed.to(dtype), weight)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _times(made: Tensor, weight: Tensor) -> Tensor:
    """Their product, in the place of the first where the type allows it."""
    return made.mul_(weight) if torch.promote_types(made.dtype, weight.dtype) == made.dtype else made * weight


class GatedSilu(Function):
    """silu(gate) up (Shazeer 2020, arXiv 2002.05202, equation 6): (…, width) each."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, again: Again) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.again = again
        return _gated_silu(gate, up)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        (slope,), (gate, up) = slopes, ctx.saved_tensors
        half = ctx.again.take()
        if gate.shape == up.shape and kernels.fit(gate, up):
            return *kernels.gated_silu_back(gate, up, slope), None
        by_up = _times(functional.silu(gate) if half is None else half, slope).to(up.dtype)
        return torch.ops.aten.silu_backward((slope * up).to(gate.dtype), gate), by_up, None


def _gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    if gate.shape == up.shape and kernels.fit(gate, up):
        return kernels.gated_silu(gate, up)
    return _times(functional.silu(gate), up)


def _gated_silu_again(gate: Tensor, up: Tensor) -> tuple[Tensor | None, Tensor]:
    if gate.shape == up.shape and kernels.fit(gate, up):
        return None, kernels.gated_silu(gate, up)
    half = functional.silu(gate)
    return half, half * up


def rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    """`Rotate`, as (batch, heads, length, width) again: a function's own views may not be changed in place."""
    return tuple(made.transpose(1, 2) for made in Rotate.apply(query, key, cosine, sine))


class Rotate(Function):
    """Positions in queries and keys, each (batch, heads, length, width) as a layer's products lie in memory.

    Gives (batch, length, heads, width). cosine and sine: (batch or 1, length, width). In the type of what is turned (Su
    et al. 2021, arXiv 2104.09864, section 3.4.2).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
        wide = _in_float32(cosine), _in_float32(sine)
        ctx.save_for_backward(*wide)
        return tuple(_turned(each.transpose(1, 2), *wide) for each in (query, key))

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return *(_turned(each, cosine, sine, back=True).transpose(1, 2) for each in slopes), None, None


def _in_float32(angles: Tensor) -> Tensor:
    """Made once, as an attribute of what all layers read."""
    if angles.dtype == torch.float32:
        return angles
    made = getattr(angles, "wide", None)
    if made is None:
        made = angles.wide = angles.float()  # type: ignore[attr-defined]
    return made


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    return kernels.rotate(x.contiguous(), cosine, sine, back=back)


def turns(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> bool:
    """Whether `Rotate` does."""
    angles = cosine.shape[0] in (1, query.shape[0]) and cosine.shape == sine.shape and query.shape[-1] % 2 == 0
    angles = angles and cosine.shape[1:] == query.shape[2:] == key.shape[2:] and key.shape[0] == query.shape[0]
    kept = cosine.is_contiguous() and sine.is_contiguous() and not (cosine.requires_grad or sine.requires_grad)
    return angles and kept and kernels.fit(query.transpose(1, 2), key.transpose(1, 2))


class Linear(Function):
    """x Wᵀ + b in `dtype`. x: (…, in); W: (out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        narrow = x.to(dtype)
        ctx.again, kept = reading(x, narrow)
        ctx.save_for_backward(weight, *(kept if ctx.needs_input_grad[1] else ()))
        ctx.types = x.dtype, dtype
        return products.linear(narrow, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        (slope,), (weight, *kept), (given, dtype) = slopes, ctx.saved_tensors, ctx.types
        wide, rows = products.through(dtype, slope), slope.shape[:-1]
        by_x, by_weight = None, weight.new_empty(weight.shape) if ctx.needs_input_grad[1] else None  # as in _low_rank
        slope = slope.reshape(-1, slope.shape[-1]).to(wide)
        if ctx.needs_input_grad[0]:
            by_x = products.back(slope, weight).view(*rows, weight.shape[1]).to(given)
        if by_weight is not None:
            x = read(ctx.again, tuple(kept), dtype).to(wide)
            if by_weight.dtype == wide:
                torch.mm(slope.T, x, out=by_weight)
            else:
                by_weight.copy_(products.mm(slope.T, x))
        by_bias = slope.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias, None


class Rows:
    """What a table's lookups add to its gradient, by row, until what else reads the table has made that.

    A backward pass reaches the table's gradient once, after all that adds to it; this is added there, in its place.
    """

    def __init__(self, table: Tensor, padding: int | None) -> None:
        self.table, self._padding = table, padding
        self._left = list[tuple[Tensor, Tensor]]()
        table.register_hook(self._add)

    def __deepcopy__(self, memo: Any) -> None:
        """The copy of a table has no hook."""

    def leave(self, ids: Tensor, slope: Tensor) -> None:
        """ids: (…); slope: (…, width), of the rows that they name. That of padding is 0, as torch has it."""
        ids, slope = ids.flatten(), slope.flatten(0, -2)
        if self._padding is not None:
            slope = slope.masked_fill((ids == self._padding)[:, None], 0)
        self._left.append((ids, slope))

    def _add(self, gradient: Tensor | None) -> None:
        """To `gradient`, (words, width); None: nothing else did read the table."""
        if gradient is None:
            if self.table.grad is None:
                self.table.grad = torch.zeros_like(self.table)
            gradient = self.table.grad
        while self._left:
            words, slopes = _by_word(*self._left.pop())
            gradient.index_add_(0, words, slopes.to(gradient.dtype))


def _by_word(ids: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Words, and the sum of each one's slopes in float32 at least; as many rows as ids, those left over are of 0.

    So a word that is there often is rounded once, and nobody waits for a GPU to know how many there are.
    """
    order = ids.argsort(stable=True)
    given = ids[order]
    places = given.diff(prepend=given[:1]).ne(0).cumsum(0)
    words = torch.zeros_like(given).scatter_(0, places, given)
    wide = slope[order].to(_wide(slope.dtype))
    return words, torch.zeros_like(wide).index_add_(0, places, wide)


class Lookup(Function):
    """table[ids]: (…, width); its gradient is left in `rows`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = rows
        return functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[None, ...]:
        ctx.rows.leave(*ctx.saved_tensors, *slopes)
        return None, None, None
