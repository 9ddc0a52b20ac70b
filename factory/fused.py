"""Norms, gated MLPs and low-rank layers, each one autograd function: what goes in is kept, and little is made.

Autograd keeps what each of an expression's operations needs: of an RMS norm its input in float32, of a gated MLP the
activation beside what it is of. Here it is made again, from what the layers before keep anyway.
"""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(Function):
    """n = x / sqrt(mean(x²) + eps) in float32 at least (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    x: (…, width); weight: (width). `whole`: n (1 + weight) in float32, rounded once (Gemma); else n is rounded to x's
    type, and that times the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, whole: bool) -> Tensor:
        scale = _inverse_rms(x, eps)
        normed = _normed(x, scale)
        ctx.save_for_backward(x, weight, scale)
        ctx.whole = whole
        if whole:
            return normed.mul_(1 + weight.to(normed.dtype)).to(x.dtype)
        return _times(normed.to(x.dtype), weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        """d x = (s - n mean(s n)) / rms(x), where s is the gradient in n."""
        (slope,), (x, weight, scale) = slopes, ctx.saved_tensors
        normed = _normed(x, scale)
        by_weight = None
        if ctx.needs_input_grad[1]:
            of_all = tuple(range(x.dim() - 1))
            of_n = normed if ctx.whole else normed.to(x.dtype)
            by_weight = (slope * of_n).sum(of_all).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None, None
        wide = normed.dtype
        inner = slope.to(wide) * (1 + weight.to(wide)) if ctx.whole else (slope * weight).to(wide)
        mean = torch.linalg.vecdot(normed, inner).div_(x.shape[-1]).unsqueeze(-1)
        return inner.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), by_weight, None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x.dtype)).square_()
    return squares.div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, scale: Tensor) -> Tensor:
    """n, in memory of its own."""
    wide = x.to(_wide(x.dtype))
    return wide * scale if wide is x else wide.mul_(scale)


def _times(made: Tensor, weight: Tensor) -> Tensor:
    """Their product, in the place of the first where the type allows it."""
    return made.mul_(weight) if torch.promote_types(made.dtype, weight.dtype) == made.dtype else made * weight


class GatedSilu(Function):
    """silu(gate) up (Shazeer 2020, arXiv 2002.05202, equation 6): (…, width) each."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _times(functional.silu(gate), up)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor, Tensor]:
        (slope,), (gate, up) = slopes, ctx.saved_tensors
        by_up = _times(functional.silu(gate), slope).to(up.dtype)
        return torch.ops.aten.silu_backward((slope * up).to(gate.dtype), gate), by_up


class LowRank(Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ (Hu et al. 2021, LoRA, equation 3), its sums taken in the products.

    x: (…, in); A: (rank, in); B: (out, rank), all of one type. `weight` makes W, (out, in), which is not trained: a
    quantized one is there while it is multiplied with.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Callable[[], Tensor], bias: Tensor | None, scale: float
    ) -> Tensor:
        low = x.reshape(-1, x.shape[-1]) @ a.T
        made = functional.linear(x, weight(), bias)  # returned as it is: what is a view may not be changed in place
        made.view(-1, made.shape[-1]).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(x, a, b, low)
        ctx.weight, ctx.scale = weight, scale
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        (slope,), (x, a, b, low) = slopes, ctx.saved_tensors
        slope = slope.reshape(-1, slope.shape[-1])
        by_low = (slope @ b).mul_(ctx.scale)
        by_a = by_low.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        by_b = slope.T @ (low * ctx.scale) if ctx.needs_input_grad[2] else None
        by_x = (slope @ ctx.weight()).addmm_(by_low, a).view_as(x) if ctx.needs_input_grad[0] else None
        return by_x, by_a, by_b, None, None, None


# --- in a model


def fuse(model: Any) -> None:
    """Its RMS norms and gated MLPs, those whose class is found to compute what is computed here."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # adapters start from the numbers that they always did
        torch.manual_seed(0)
        for found in _by_class(model, _is_norm).values():
            whole = next((whole for whole in (False, True) if _is_rms_norm(found[0], whole)), None)
            if whole is not None:
                _become(found, lambda norm, x, whole=whole: RMSNorm.apply(x, norm.weight, _eps(norm), whole))
        for found in _by_class(model, _is_mlp).values():
            if _is_gated_silu(found[0]):
                _become(found, _gated)


def fuse_adapters(model: Any) -> None:
    """LoRA's layers, while they are a frozen linear one with one adapter beside it."""
    for found in _by_class(model, _is_plain).values():
        usual = type(found[0]).forward
        _become(found, partial(_adapted, usual=usual))


def _by_class(model: Any, wanted: Callable[[Any], bool]) -> dict[type, list[Any]]:
    found: dict[type, list[Any]] = {}
    for module in model.modules():
        if wanted(module):
            found.setdefault(type(module), []).append(module)
    return found


def _become(modules: list[Any], forward: Callable[..., Any]) -> None:
    """Objects of a class that is as theirs but for `forward`: whoever copies a module copies that too."""
    kind = type(modules[0])
    fused = type(kind.__name__, (kind,), {"forward": lambda *given, **named: forward(*given, **named)})
    fused.__module__, fused.__qualname__ = kind.__module__, kind.__qualname__
    for module in modules:
        module.__class__ = fused


def _eps(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_norm(module: Any) -> bool:
    weights = dict(module.named_parameters())
    return list(weights) == ["weight"] and weights["weight"].dim() == 1 and _eps(module) is not None


def _is_rms_norm(norm: Any, whole: bool) -> bool:
    own = copy.deepcopy(norm).to("cpu", torch.float32)
    sizes = torch.tensor([[1.0], [10.0], [1e-3], [1e-4]])  # where eps tells, and where not
    x = sizes * torch.randn(4, len(own.weight))
    try:
        return bool(torch.allclose(own(x), RMSNorm.apply(x, own.weight, _eps(own), whole), atol=1e-5))
    except (RuntimeError, TypeError):  # it takes something else
        return False


def _is_mlp(module: Any) -> bool:
    return {"gate_proj", "up_proj", "down_proj", "act_fn"} <= {name for name, _ in module.named_children()}


def _is_gated_silu(mlp: Any) -> bool:
    """Asked of the class's forward with layers of a few numbers in place of its own."""
    layers = {name: torch.nn.Linear(3, 3) for name in ("gate_proj", "up_proj", "down_proj")}
    own = SimpleNamespace(**layers, act_fn=mlp.act_fn)
    x = torch.randn(4, 3)
    try:
        return bool(torch.allclose(type(mlp).forward(own, x), _gated(own, x)))
    except (RuntimeError, TypeError, AttributeError):  # it does something else
        return False


def _gated(mlp: Any, x: Tensor) -> Tensor:
    return mlp.down_proj(GatedSilu.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def _is_plain(layer: Any) -> bool:
    """PEFT's classes beside torch's own layer and bitsandbytes' 4-bit one; others may hold weights in their own way."""
    ours = f"{type(layer).__module__}.{type(layer).__name__}" in _LORA
    return ours and not layer.lora_variant and not layer.fan_in_fan_out and _weight(layer.get_base_layer()) is not None


_LORA = ("peft.tuners.lora.layer.Linear", "peft.tuners.lora.bnb.Linear4bit")


def _adapted(layer: Any, x: Tensor, *given: Any, usual: Callable[..., Tensor], **named: Any) -> Tensor:
    device, active = x.device.type, layer.active_adapters
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else x.dtype
    name = active[0] if len(active) == 1 else None
    plain = not (given or named or layer.disable_adapters or layer.merged) and name in layer.lora_A
    if not plain or (layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)):
        return usual(layer, x, *given, **named)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    base = layer.get_base_layer()
    learns_more = base.weight.requires_grad or layer.lora_B[name].bias is not None
    if learns_more or (not mixed and not x.dtype == a.dtype == b.dtype):
        return usual(layer, x)
    make = _weight(base)
    assert make is not None
    bias = None if base.bias is None else base.bias.to(dtype)
    return LowRank.apply(x.to(dtype), a.to(dtype), b.to(dtype), lambda: make().to(dtype), bias, layer.scaling[name])


def _weight(base: Any) -> Callable[[], Tensor] | None:
    """What makes a linear layer's weight, (out, in); None of one that is held in another way."""
    if type(base) is torch.nn.Linear:
        return lambda: base.weight
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    if type(base).__name__ != "Linear4bit" or state is None:
        return None
    from bitsandbytes.functional import dequantize_4bit

    return lambda: dequantize_4bit(base.weight.data, state)
