"""The fused functions in a model, in place of layers that are found to compute the same.

Autograd's own way with each is in `functions`.
"""

import copy
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from inspect import signature, unwrap
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from factory import products
from factory.fused.adapted import Adapted, low_rank
from factory.fused.functions import Linear, Lookup, Rows, gated_silu, rms_norm, rotate, turns
from factory.fused.together import Together, join
from factory.native import kernels


def fuse(model: Any, *, remade: bool = True) -> None:
    """Its RMS norms and gated MLPs, those whose class is found to compute what is computed here.

    `remade`: what they make is not kept by linear layers that read it (`fuse_linears`), but made again.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # adapters start from the numbers that they always did
        torch.manual_seed(0)
        for found in _by_class(model, _is_norm).values():
            whole = next((whole for whole in (False, True) if _is_rms_norm(found[0], whole)), None)
            if whole is not None:
                _become(found, partial(_norm, whole=whole, remade=remade))
        for found in _by_class(model, _is_mlp, _activated_by).values():
            if _is_gated_silu(found[0]):
                _become(found, partial(_gated, remade=remade))
        if kernels.used():
            for found in _by_class(model, _turns).values():
                _turn(unwrap(type(found[0]).forward).__globals__)


def fuse_linears(model: Any) -> None:
    """LoRA's layers, while they are a frozen linear one with one adapter beside it; without PEFT, layers that train.

    Where products are made wide, the base's other layers too. What PEFT has put in is left, whether it trains or was
    read, and a language model's head: it is read by the losses (factory.losses).
    """
    adapted = hasattr(model, "peft_config")
    if adapted:
        for found in _by_class(model, _is_plain).values():
            _become(found, partial(_adapted, usual=type(found[0]).forward))
        join(model, _is_plain)
    if adapted and not products.used():
        return
    left = {model.get_output_embeddings(), *(_put_in(model) if adapted else ())}

    def is_ours(module: Any) -> bool:
        return type(module) is torch.nn.Linear and module not in left and not hasattr(module.weight, _OF_OTHERS)

    for found in _by_class(model, is_ours).values():
        _become(found, _linear)


_OF_OTHERS = "__tensor_flatten__"  # what a tensor has that is another library's kind, as torchao's


def _put_in(model: Any) -> Iterator[Any]:
    """The layers of adapters, and copies that train in the place of the base's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        tuner = isinstance(module, BaseTunerLayer)
        if tuner or isinstance(module, AuxiliaryTrainingWrapper):
            names = module.adapter_layer_names if tuner else ("modules_to_save",)
            for part in (getattr(module, name, None) for name in names):
                yield from part.modules() if isinstance(part, torch.nn.Module) else ()


def fuse_embedding(model: Any) -> None:
    """Of an embedding that is the head too: the table's gradient is the head's, and its own is added to that by row.

    For models whose loss reads the head. Autograd would make a second one, as large, and add the two.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, torch.nn.Embedding) or head is None or head.weight is not embedding.weight:
        return
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return
    kind = type(embedding)
    bases = (_Embedding,) if kind is torch.nn.Embedding else (kind, _Embedding)  # some scale what this gives
    embedding.__class__ = type(kind.__name__, bases, {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


class _Embedding(torch.nn.Embedding):
    _rows: Rows | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        if self._rows is None or self._rows.table is not self.weight:
            self._rows = Rows(self.weight, self.padding_idx)
        return Lookup.apply(input, self.weight, self._rows)


def _by_class(
    model: Any, wanted: Callable[[Any], bool], kind: Callable[[Any], Hashable] = type
) -> dict[Hashable, list[Any]]:
    found: dict[Hashable, list[Any]] = {}
    for module in model.modules():
        if wanted(module):
            found.setdefault(kind(module), []).append(module)
    return found


def _become(modules: list[Any], forward: Callable[..., Any]) -> None:
    """Objects of a class that is as theirs but for `forward`: whoever copies a module copies that too."""
    kind = type(modules[0])
    fused = type(kind.__name__, (kind,), {"forward": lambda *given, **named: forward(*given, **named)})
    fused.__module__, fused.__qualname__ = kind.__module__, kind.__qualname__
    for module in modules:
        module.__class__ = fused


_ANGLED = 4  # query, key, cosine and sine
_TURN = "apply_rotary_pos_emb"  # how transformers calls it in each kind's own file


def _turns(module: Any) -> bool:
    return _TURN in getattr(getattr(unwrap(type(module).forward), "__code__", None), "co_names", ())


def _turn(names: dict[str, Any]) -> None:
    """Puts ours in the place of a file's function, for what ours fits, if they are found to compute the same."""
    usual, angles = names.get(_TURN), torch.randn(2, 2, 5, 8)
    if usual is None or isinstance(usual, _Turned):  # a method's name, or it is done
        return
    query, key = (torch.randn(2, 5, heads, 8).transpose(1, 2) for heads in (4, 2))
    try:
        same = zip(usual(query, key, *angles), rotate(query, key, *angles), strict=True)
        if all(torch.allclose(*pair, atol=1e-6) for pair in same):
            names[_TURN] = _Turned(usual)
    except (RuntimeError, TypeError, ValueError):  # it takes something else
        return


class _Turned:
    """A file's function that stays what it is where nothing in C is used, as for another model of this process."""

    def __init__(self, usual: Callable[..., Any]) -> None:
        self.usual = usual

    def __call__(self, *given: Any, **named: Any) -> Any:
        if len(given) != _ANGLED or named or not turns(*given):  # who calls it otherwise means something else
            return self.usual(*given, **named)
        return rotate(*given)


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_norm(module: Any) -> bool:
    weights = dict(module.named_parameters())
    alone = list(weights) == ["weight"] and weights["weight"].dim() == 1 and _eps(module) is not None
    return alone and len(signature(module.forward).parameters) == 1  # Mamba's have a gate as well


def _is_rms_norm(norm: Any, whole: bool) -> bool:
    own = copy.deepcopy(norm).to("cpu", torch.float32)
    sizes = torch.tensor([[1.0], [10.0], [1e-3], [1e-4]])  # where eps tells, and where not
    x = sizes * torch.randn(4, len(own.weight))
    try:
        return bool(torch.allclose(own(x), rms_norm(x, own.weight, _eps(own), whole), atol=1e-5))
    except Exception:  # of any kind: it takes something else
        return False


def _is_mlp(module: Any) -> bool:
    return {"gate_proj", "up_proj", "down_proj", "act_fn"} <= {name for name, _ in module.named_children()}


def _activated_by(mlp: Any) -> Hashable:
    """A class may be used with several activations."""
    return type(mlp), type(mlp.act_fn) if isinstance(mlp.act_fn, torch.nn.Module) else mlp.act_fn


def _is_gated_silu(mlp: Any) -> bool:
    """Asked of the class's forward with layers of a few numbers in place of its own."""
    layers = {name: torch.nn.Linear(3, 3) for name in ("gate_proj", "up_proj", "down_proj")}
    own = SimpleNamespace(**layers, act_fn=mlp.act_fn)
    x = torch.randn(4, 3)
    try:
        return bool(torch.allclose(type(mlp).forward(own, x), _gated(own, x)))
    except Exception:  # of any kind: it does something else
        return False


def _norm(norm: Any, x: Tensor, *, whole: bool, remade: bool) -> Tensor:
    return rms_norm(x, norm.weight, _eps(norm), whole, remade=remade)


def _gated(mlp: Any, x: Tensor, *, remade: bool = False) -> Tensor:
    return mlp.down_proj(gated_silu(mlp.gate_proj(x), mlp.up_proj(x), remade=remade))


def _is_plain(layer: Any) -> bool:
    """PEFT's classes beside torch's own layer and bitsandbytes' 4-bit one; others may hold weights in their own way."""
    ours = f"{type(layer).__module__}.{type(layer).__name__}" in _LORA
    return ours and not layer.lora_variant and not layer.fan_in_fan_out and _weight(layer.base_layer) is not None


_LINEAR = f"{torch.nn.Linear.__module__}.{torch.nn.Linear.__qualname__}"
_LORA = ("peft.tuners.lora.layer.Linear", "peft.tuners.lora.bnb.Linear4bit")


def _product_type(x: Tensor) -> tuple[bool, torch.dtype]:
    """Whether autocast chooses the type that `x` is multiplied in, and that."""
    device = x.device.type
    mixed = torch.is_autocast_enabled(device)
    return mixed, torch.get_autocast_dtype(device) if mixed else x.dtype


def _linear(layer: Any, x: Tensor) -> Tensor:
    mixed, dtype = _product_type(x)
    learns = layer.weight.requires_grad and torch.is_grad_enabled()  # else autocast keeps what it has narrowed
    if (not learns and products.through(dtype, x) == dtype) or (not mixed and dtype != layer.weight.dtype):
        if kernels.shares() and dtype == layer.weight.dtype and not (mixed or torch.is_grad_enabled()):
            return products.linear(x, layer.weight, layer.bias)
        return torch.nn.Linear.forward(layer, x)
    return Linear.apply(x, layer.weight, layer.bias, dtype)


def _adapted(layer: Any, x: Tensor, *given: Any, usual: Callable[..., Tensor], **named: Any) -> Tensor:
    together: Together = layer.together
    if (made := together.take(layer, x)) is not None:
        return made
    own = None if given or named else _as_adapted(layer, x)
    if own is None:
        return usual(layer, x, *given, **named)
    joined = [] if x.is_inference() else together.others(layer)  # such have no version: they may change unseen
    others = {other: _as_adapted(other, x) for other in joined}
    alike = {other: found for other, found in others.items() if found is not None and _are_alike(found, own)}
    made, *rest = low_rank(x, [own, *alike.values()], _product_type(x)[1])
    together.leave(x, dict(zip(alike, rest, strict=True)))
    return made


def _as_adapted(layer: Any, x: Tensor) -> Adapted | None:
    """None where it is more, or another type of it, than a low rank beside a frozen layer."""
    active = layer.active_adapters
    name = active[0] if len(active) == 1 else None
    plain = not (layer.disable_adapters or layer.merged) and name in layer.lora_A
    if not plain or (layer.training and not isinstance(layer.lora_dropout[name], torch.nn.Identity)):
        return None
    second, base = layer.lora_B[name], layer.base_layer  # asked for once: what a module holds is found slowly
    a, b, bias = layer.lora_A[name].weight, second.weight, base.bias
    learns_more = base.weight.requires_grad or second.bias is not None or (bias is not None and bias.requires_grad)
    if learns_more or (not x.dtype == a.dtype == b.dtype and not _product_type(x)[0]):
        return None
    make = _weight(base)
    assert make is not None
    return Adapted(a, b, layer.scaling[name], make, bias)


def _are_alike(one: Adapted, other: Adapted) -> bool:
    return (one.scale, one.a.dtype, one.b.dtype) == (other.scale, other.a.dtype, other.b.dtype)


def _weight(base: Any) -> Callable[[], Tensor] | None:
    """What makes a linear layer's weight, (out, in); None of one that is held in another way."""
    if f"{type(base).__module__}.{type(base).__qualname__}" == _LINEAR:  # ours in its place too
        return lambda: base.weight
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    if type(base).__name__ != "Linear4bit" or state is None:
        return None
    from bitsandbytes.functional import dequantize_4bit

    return lambda: dequantize_4bit(base.weight.data, state)
