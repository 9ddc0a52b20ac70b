"""What adapters compute beside a linear layer, operation by operation, as PEFT's layers do (peft.tuners)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from factory.estimate.tape import Tape, Tensor, Weight

Product = Callable[[Tensor], Tensor]  # the frozen layer


@dataclass(frozen=True, slots=True)
class Beside:
    """The adapter of one linear layer: its tensors by the last words of their names, and the layer's own width."""

    tensors: dict[str, Weight]
    outputs: int
    inputs: int
    method: Any

    @property
    def size(self) -> int:
        return next(iter(self.tensors.values())).size


def _dropped(tape: Tape, value: Tensor, share: float) -> Tensor:
    """Elementwise times noise of the value's own type, as torch does it on a CPU."""
    if not share:
        return value
    noise = tape.new(value.count, value.size)
    return tape.operation([value], value.count, value.size, saves=(noise,))


def _pair(tape: Tape, value: Tensor, own: Beside) -> Tensor:
    first, second = own.tensors["lora_A"], own.tensors["lora_B"]
    return tape.product(tape.product(value, first, first.count // own.inputs), second, own.outputs)


def lora(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    """result + B A dropout(x) alpha / r, x in the adapter's type unless autocast chooses it (factory.methods.lora)."""
    result = base(value)
    wanted = result.size
    wide = tape.cast(value, own.size) if tape.compute is None else value
    result = tape.add(result, tape.pointwise(_pair(tape, _dropped(tape, wide, own.method.dropout), own)))
    return tape.cast(result, wanted)


def dora(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    """result + (m / |W'| - 1) base + m / |W'| BA x alpha / r; the norms need whole matrices (lora.dora)."""
    result = base(value)
    wanted, whole = result.size, own.outputs * own.inputs
    wide = _dropped(tape, tape.cast(value, own.size), own.method.dropout)
    compute = tape.compute or own.size
    product = whole * compute + (whole * own.size if compute != own.size else 0)  # B A of the identity
    norms = 3 * whole * own.size  # the weight in the adapter's type, the scaled difference, their sum
    tape.ledger.pass_by(own.inputs**2 * (own.size + (compute if compute != own.size else 0)) + product + norms)
    length = own.tensors["lora_magnitude_vector"]
    low = _pair(tape, wide, own)
    again = result if not own.method.dropout else base(wide)
    change = tape.scaled(again, length)
    change = tape.add(change, tape.pointwise(tape.scaled(low, length)))
    return tape.cast(tape.add(result, change), wanted)


def vera(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    """result + b (B d (A x)), A and B the same frozen ones everywhere (vera.layer)."""
    result = base(value)
    rank, size = own.tensors["vera_lambda_d"], own.size
    wide = tape.cast(value, size)
    shared = Weight(rank.count * own.inputs, size), Weight(rank.count * own.outputs, size)
    low = tape.scaled(tape.product(wide, shared[0], rank.count), rank)
    high = tape.scaled(tape.product(low, shared[1], own.outputs), own.tensors["vera_lambda_b"])
    return tape.cast(tape.add(result, high), result.size)


def ia3(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    """The layer's outputs, or a feed-forward layer's inputs, times a vector (ia3.layer)."""
    length = own.tensors["ia3_l"]
    if length.count != own.outputs:
        wide = tape.cast(value, own.size)
        return base(tape.cast(tape.scaled(wide, length), value.size))
    result = base(value)
    return tape.cast(tape.scaled(result, length), result.size)


def oft(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    """The layer of rotated inputs, rotated in the adapter's type (oft.layer.OFTRotationModule)."""
    size, wanted = own.size, value.size
    compute = tape.compute or size
    blocks = own.inputs * own.method.block_size  # elements of all blocks' matrices
    narrow = compute != size
    terms = (own.method.neumann_terms or 3) + (2 if narrow else -1)  # powers and their sum; autocast's copies of them
    kept = tape.new(terms * blocks, compute)
    wide = low = tape.cast(value, size)  # there until the rotated ones are
    if narrow:  # a copy, whose blocks lie one after the other
        low = tape.pointwise(tape.cast(wide, compute))
    turned = tape.operation([low], low.count, compute, saves=(low, kept), trains=tuple(own.tensors.values()))
    turned = tape.cast(tape.pointwise(turned), size)
    del wide, low
    return base(tape.cast(turned, wanted))


def whole(tape: Tape, value: Tensor, base: Product, own: Beside, *, casts: bool) -> Tensor:
    """result + x times a difference that is made as a whole matrix (lycoris_utils). `casts`: x is cast to its type."""
    result = base(value)
    size, compute = own.outputs * own.inputs, tape.compute or own.size
    wide = tape.cast(value, own.size) if casts else value
    tape.ledger.pass_by(2 * size * own.size)
    narrow = tape.new(size, compute)
    low = tape.cast(wide, compute)
    beside = tape.operation(
        [low],
        value.count // own.inputs * own.outputs,
        compute,
        saves=(low, narrow),
        trains=tuple(own.tensors.values()),
        backward_scratch=[size * own.size] * 3,
    )
    return tape.cast(tape.add(result, beside), result.size)


# by the tensor that tells which adapter it is; the first that is there
FORMS: dict[str, Callable[[Tape, Tensor, Product, Beside], Tensor]] = {
    "lora_magnitude_vector": dora,
    "lora_A": lora,
    "vera_lambda_d": vera,
    "ia3_l": ia3,
    "oft_R": oft,
    "hada_w1_a": partial(whole, casts=False),
    "lokr_w1": partial(whole, casts=True),
    "lokr_w1_a": partial(whole, casts=True),
}


def adapted(tape: Tape, value: Tensor, base: Product, own: Beside) -> Tensor:
    form = next(form for name, form in FORMS.items() if name in own.tensors)
    return form(tape, value, base, own)
