"""The kernels in C: each one pass over its numbers, where torch takes one for each operation (native/*.c).

A process uses them once it is told so (`use`), for what they fit: contiguous tensors of one type on a CPU.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory.attention import BLOCK, HEAD_STEP, WIDEST_HEAD
from factory.look import cpu
from factory.native import MOST_RANKS, build
from factory.refusal import refuse

_ARGUMENTS = {
    "gated_silu": (c_int64, *3 * (c_void_p,)),
    "gated_silu_back": (c_int64, *5 * (c_void_p,)),
    "rms_norm": (c_int64, c_int64, c_float, c_int, *4 * (c_void_p,)),
    "rms_norm_back": (c_int64, c_int64, c_int, *5 * (c_void_p,)),
    "rms_norm_weight": (c_int64, c_int64, c_int64, *4 * (c_void_p,)),
    "cross_entropy": (c_int64, c_int64, c_float, c_void_p, c_void_p, c_int, *2 * (c_void_p,)),
    "rotate": (*4 * (c_int64,), c_int, *4 * (c_void_p,)),
    "few_down": (*3 * (c_int64,), c_float, *4 * (c_void_p,), c_int64),
    "few_up": (*3 * (c_int64,), c_float, c_void_p, c_int64, c_void_p, c_int, c_void_p),
    "multiply_shared": (c_void_p, *5 * (c_int,), *2 * (c_void_p, c_int, c_int), c_void_p, c_int),
    "few_outer": (*3 * (c_int64,), c_float, c_void_p, c_int64, c_void_p, c_int, c_void_p),
}
_STRIP = 16  # columns, as few.c has it
_libraries: dict[torch.dtype, ctypes.CDLL] = {}
_sgemm: Any = None  # MKL's, where `multiply_shared` is faster than what torch makes of it
_LEAST_SHARED = 128  # columns of a thread


class _States(ctypes.Structure):
    """(batch, heads, length, width), with numbers of a head and token in a row."""

    _fields_ = [("at", c_void_p), ("batch", c_int64), ("head", c_int64), ("token", c_int64)]

    @classmethod
    def of(cls, states: Tensor) -> "_States":
        return cls(states.data_ptr(), *states.stride()[:3])


class _Problem(ctypes.Structure):
    """As attention.c has it."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "key_heads", "sharing", "length", "dim", "value_dim", "threads")),
        ("scale", c_float),
        ("spans", c_void_p),
        *((name, _States) for name in ("query", "key", "value")),
    ]


# of attention, in libraries that have it: what comes back, and what goes in after the problem
_ATTENTION: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attend_room": (c_int64, ()),
    "attend_back_room": (c_int64, ()),
    "attend": (None, 3 * (c_void_p,)),
    "attend_back": (None, 7 * (c_void_p,)),
}


def use(wanted: bool) -> None:
    """Whether this process uses them from now on. Raises UserError where they cannot be made."""
    global _sgemm
    _libraries.clear()
    _sgemm = None
    if wanted:
        try:
            _share_threads()
            _libraries.update({getattr(torch, number): _load(number) for number in build.NUMBERS})
            _sgemm = _mkls_sgemm() if cpu.vendor() == "AuthenticAMD" else None
        except (build.NotBuiltError, OSError) as error:
            raise refuse("native-kernels", "compute.kernels=native", str(error)) from error


def used() -> bool:
    return bool(_libraries)


def _load(number: str) -> ctypes.CDLL:
    found = ctypes.CDLL(str(build.kernels(number)))
    for name, arguments in _ARGUMENTS.items():
        kernel = getattr(found, name)
        kernel.argtypes, kernel.restype = arguments, None
    for name, (gives, arguments) in _ATTENTION.items() if build.attends(number) else ():
        kernel = getattr(found, name)
        kernel.argtypes, kernel.restype = (ctypes.POINTER(_Problem), *arguments), gives
    return found


def _mkls_sgemm() -> Any:
    """None where torch has another BLAS, or hides it."""
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torchs.sgemm_, c_void_p) if torch.backends.mkl.is_available() else None
    except (OSError, AttributeError):
        return None


def _share_threads() -> None:
    """Makes torch's OpenMP, by whatever name it has it, the one that answers: two would fight for the cores."""
    loaded = {_mapped(line) for line in Path("/proc/self/maps").read_text().splitlines()}
    for path in sorted(path for path in loaded if "/libgomp" in path):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def _mapped(line: str) -> str:
    """The file that a line of /proc/self/maps is of, whose path may have spaces in it; empty where it is of none."""
    return "".join(line.split(maxsplit=5)[5:]).removesuffix(" (deleted)")


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


def shares() -> bool:
    """Whether `multiply_shared` may be worth it."""
    return _sgemm is not None


def multiply_shared(a: Tensor, b: Tensor, into: Tensor, *, onto: bool) -> bool:
    """a b in `into`, or added `onto` what it is: (rows, inner) and (inner, columns) to (rows, columns).

    False, and nothing is done, where it does not take them or is not worth it: with one thread, with few columns for
    each, or where what each makes is more than twice as high as wide, as each lays out all rows.
    """
    (rows, columns), threads = into.shape, torch.get_num_threads()
    if _sgemm is None or not 1 < threads <= columns // _LEAST_SHARED or rows * threads > 2 * columns:
        return False
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in (a, b, into)):
        return False
    as_a, as_b, as_into = _lies(a), _lies(b), _lies(into)
    if as_a is None or as_b is None or as_into is None or as_into[0] or not a.shape[1]:
        return False
    multiply = _libraries[torch.float32].multiply_shared
    given = a.data_ptr(), *as_a, b.data_ptr(), *as_b, into.data_ptr(), as_into[1]
    multiply(_sgemm, threads, onto, rows, columns, a.shape[1], *given)
    return True


def _lies(matrix: Tensor) -> tuple[bool, int] | None:
    """Whether it lies as its transpose does, and the numbers from one row to the next, as it lies. None: otherwise."""
    (rows, columns), (by_row, by_column) = matrix.shape, matrix.stride()
    if by_column == 1 and by_row >= columns:
        return False, by_row
    return (True, by_column) if by_row == 1 and by_column >= rows else None


def few_fit(x: Tensor, every_a: Sequence[Tensor], every_b: Sequence[Tensor]) -> bool:
    """Whether `few_down`, `few_up` and `few_outer` take rows as x, A, (rank, width), and turned B, (width, rank)."""
    there, width = x.dtype in _libraries and x.device.type == "cpu", x.shape[-1]
    return (
        there
        and width % _STRIP == 0
        and sum(len(a) for a in every_a) <= MOST_RANKS
        and all(
            a.shape == (b.shape[1], width) and b.shape[0] % _STRIP == 0 for a, b in zip(every_a, every_b, strict=True)
        )
        and all(
            few.dtype == torch.float32 and few.device.type == "cpu" and few.is_contiguous()
            for few in (*every_a, *every_b)
        )
    )


def few_down(x: Tensor, few: Tensor, scale: float, low: Tensor, *, turned: bool = False) -> None:
    """scale x few' into low: (rows, width) to (rows, rank). few: (rank, width), or `turned` (width, rank)."""
    (rows, width), rank = x.shape, low.shape[1]
    room = torch.empty_like(few) if turned else None
    at = x.data_ptr(), few.data_ptr(), None if room is None else room.data_ptr(), low.data_ptr()
    _libraries[x.dtype].few_down(rows, width, rank, scale, *at, low.stride(0))


def few_up(low: Tensor, few: Tensor, scale: float, made: Tensor, *, turned: bool = False) -> None:
    """scale low few into made: (rows, rank) to (rows, width). few as of `few_down`."""
    (rows, width), rank = made.shape, low.shape[1]
    at = low.data_ptr(), low.stride(0), few.data_ptr(), turned, made.data_ptr()
    _libraries[made.dtype].few_up(rows, width, rank, scale, *at)


def few_outer(low: Tensor, x: Tensor, scale: float, made: Tensor, *, turned: bool = False) -> None:
    """scale low' x into made: (rank, width), or `turned` (width, rank)."""
    (rows, width), rank = x.shape, low.shape[1]
    at = low.data_ptr(), low.stride(0), x.data_ptr(), turned, made.data_ptr()
    _libraries[x.dtype].few_outer(rows, width, rank, scale, *at)


def attends(dtype: torch.dtype, *states: Tensor) -> bool:
    """Whether `attend` takes them in this type: where the processor has instructions for it."""
    there = dtype in _libraries and hasattr(_libraries[dtype], "attend")
    return there and all(
        each.device.type == "cpu" and each.shape[-1] % HEAD_STEP == 0 and each.shape[-1] <= WIDEST_HEAD
        for each in states
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, scale: float, made: Tensor, sums: Tensor
) -> None:
    """Causal attention, softmax(scale Q K') V: (batch, heads, length, dim) to (batch, length, heads, value dim).

    Keys and values of as many heads, or fewer. It goes into `made`, and of each query the logarithm of its sum of
    exp(score) into `sums`, (batch, heads, length) in float32. spans: as of `factory.attention.mask.Spans`, (batch, 3,
    length) in int32.
    """
    problem, library = _problem(query, key, value, spans, scale), _libraries[query.dtype]
    room = query.new_empty(library.attend_room(problem), dtype=torch.uint8)
    library.attend(problem, *(each.data_ptr() for each in (made, sums, room)))


def attend_back(
    slope: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor | None,
    scale: float,
    made: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The slopes in query, key and value, of that in what was `made`; `sums` as `attend` gave them."""
    slope = slope.contiguous()
    found = tuple(each.new_empty(each.transpose(1, 2).shape) for each in (query, key, value))
    problem, library = _problem(query, key, value, spans, scale), _libraries[query.dtype]
    room = query.new_empty(library.attend_back_room(problem), dtype=torch.uint8)
    library.attend_back(problem, *(each.data_ptr() for each in (made, sums, slope, *found, room)))
    by_query, by_key, by_value = (each.transpose(1, 2) for each in found)
    return by_query, by_key, by_value


def _problem(query: Tensor, key: Tensor, value: Tensor, spans: Tensor | None, scale: float) -> _Problem:
    given = [each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value)]
    (batch, heads, length, dim), key_heads, width = query.shape, key.shape[1], value.shape[-1]
    sharing = heads // key_heads
    threads = min(torch.get_num_threads(), sharing * -(-length // BLOCK))  # more would find no block
    sizes = batch, key_heads, sharing, length, dim, width, threads
    found = _Problem(*sizes, scale, None if spans is None else spans.data_ptr(), *map(_States.of, given))
    found.kept = given  # as long as their addresses are
    return found
