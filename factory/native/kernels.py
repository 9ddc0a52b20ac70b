"""The kernels in C: each one pass over its numbers, where torch takes one for each operation (kernels.c).

A process uses them once it is told so (`use`), for what they fit: contiguous tensors of one type on a CPU.
"""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from factory.native import build
from factory.refusal import refuse

_ARGUMENTS = {
    "gated_silu": (c_int64, *3 * (c_void_p,)),
    "gated_silu_back": (c_int64, *5 * (c_void_p,)),
    "rms_norm": (c_int64, c_int64, c_float, c_int, *4 * (c_void_p,)),
    "rms_norm_back": (c_int64, c_int64, c_int, *5 * (c_void_p,)),
    "rms_norm_weight": (c_int64, c_int64, c_int64, *4 * (c_void_p,)),
    "cross_entropy": (c_int64, c_int64, c_float, c_void_p, c_void_p, c_int, *2 * (c_void_p,)),
    "rotate": (*4 * (c_int64,), c_int, *4 * (c_void_p,)),
}
_libraries: dict[torch.dtype, ctypes.CDLL] = {}


def use(wanted: bool) -> None:
    """Whether this process uses them from now on. Raises UserError where they cannot be made."""
    _libraries.clear()
    if wanted:
        try:
            _share_threads()
            _libraries.update({getattr(torch, number): _load(number) for number in build.NUMBERS})
        except (build.NotBuiltError, OSError) as error:
            raise refuse("native-kernels", "compute.kernels=native", str(error)) from error


def used() -> bool:
    return bool(_libraries)


def _load(number: str) -> ctypes.CDLL:
    found = ctypes.CDLL(str(build.kernels(number)))
    for name, arguments in _ARGUMENTS.items():
        kernel = getattr(found, name)
        kernel.argtypes, kernel.restype = arguments, None
    return found


def _share_threads() -> None:
    """Makes torch's OpenMP, by whatever name it has it, the one that answers: two would fight for the cores."""
    loaded = (line.rpartition(" ")[2].strip() for line in Path("/proc/self/maps").read_text().splitlines())
    for path in sorted({path for path in loaded if "/libgomp" in path}):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def fit(*tensors: Tensor) -> bool:
    dtype = tensors[0].dtype
    return dtype in _libraries and all(
        each.dtype == dtype and each.device.type == "cpu" and each.is_contiguous() for each in tensors
    )


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up: (…)."""
    made = torch.empty_like(gate)
    _libraries[gate.dtype].gated_silu(gate.numel(), gate.data_ptr(), up.data_ptr(), made.data_ptr())
    return made


def gated_silu_back(gate: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes in gate and up."""
    slope, made = slope.contiguous(), (torch.empty_like(gate), torch.empty_like(up))
    _libraries[gate.dtype].gated_silu_back(gate.numel(), *(each.data_ptr() for each in (gate, up, slope, *made)))
    return made


def rms_norm(x: Tensor, weight: Tensor, eps: float, whole: bool) -> tuple[Tensor, Tensor]:
    """As `factory.fused.functions.RMSNorm`, (…, width); and 1 / rms(x), (…, 1) in float32."""
    made, inverse = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    tensors = (each.data_ptr() for each in (x, weight, made, inverse))
    _libraries[x.dtype].rms_norm(inverse.numel(), x.shape[-1], eps, whole, *tensors)
    return made, inverse


def rms_norm_back(x: Tensor, weight: Tensor, inverse: Tensor, slope: Tensor, whole: bool) -> Tensor:
    """The slope in x."""
    slope, made = slope.contiguous(), torch.empty_like(x)
    tensors = (each.data_ptr() for each in (x, weight, inverse, slope, made))
    _libraries[x.dtype].rms_norm_back(inverse.numel(), x.shape[-1], whole, *tensors)
    return made


def rms_norm_weight(x: Tensor, inverse: Tensor, slope: Tensor) -> Tensor:
    """The slope in the weight: (width)."""
    slope, threads = slope.contiguous(), torch.get_num_threads()
    parts = x.new_zeros(threads, x.shape[-1], dtype=torch.float32)
    tensors = (each.data_ptr() for each in (x, inverse, slope, parts))
    _libraries[x.dtype].rms_norm_weight(inverse.numel(), x.shape[-1], threads, *tensors)
    return parts.sum(0).to(x.dtype)


def cross_entropy(product: Tensor, target: Tensor, scale: float, factors: Tensor | None, *, slopes: bool) -> Tensor:
    """-log softmax(scale product)[target]: (rows) in float32, of product: (rows, words).

    In the product's place, where `slopes` are asked for, are those in it, each row's times its factor (None: 1).
    Raises IndexError for a target that is no word.
    """
    if bool(((target < 0) | (target >= product.shape[1])).any()):
        raise IndexError(f"targets are 0 to {product.shape[1] - 1}, not {target.tolist()}")
    losses = product.new_empty(len(product), dtype=torch.float32)
    target = target.contiguous()
    factors = None if factors is None else factors.to(torch.float32).contiguous()
    _libraries[product.dtype].cross_entropy(
        *product.shape,
        scale,
        target.data_ptr(),
        None if factors is None else factors.data_ptr(),
        slopes,
        product.data_ptr(),
        losses.data_ptr(),
    )
    return losses


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool = False) -> Tensor:
    """Positions in x, (batch, length, heads, width), by cosine and sine: (batch or 1, length, width) in float32.

    `back`: x is the slope in what was made, and what is returned that in what it was made of.
    """
    made, (batch, length, heads, width) = torch.empty_like(x), x.shape
    tensors = (each.data_ptr() for each in (x, cosine, sine, made))
    rows = batch * length
    _libraries[x.dtype].rotate(rows, cosine.shape[0] * length, heads, width, back, *tensors)
    return made
