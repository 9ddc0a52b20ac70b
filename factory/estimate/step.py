"""A training step on a tape: how much activations, gradients and temporary buffers take at most."""

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

from factory.architecture import Architecture, Shape
from factory.estimate.attention import Shapes
from factory.estimate.decoder import Decoder, Numbers
from factory.estimate.heap import Heap, gives_back
from factory.estimate.loss import cross_entropy, log_probs, score
from factory.estimate.tape import Ledger, Storage, Tape
from factory.kernels import LIGER_WITHOUT_ROPE
from factory.plan.plan import BYTES, Compiled, Patch
from factory.quantizers.spec import stays_quantized

_LOSSES = {"tokens": cross_entropy, "answers": log_probs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Bytes beside weights and the optimizer's state. `saved`: at the forward pass's end; `forward`, `backward`: most.

    `heap` is how much of glibc's heap was resident in two steps, with the optimizer's state in it; 0 on a GPU.
    """

    saved: int
    logits: int
    forward: int
    backward: int
    heap: int


def step(
    arch: Architecture,
    trained: dict[str, Shape],
    plan: Compiled,
    method: Any,
    *,
    rows: int,
    length: int,
    reads: str,
    copied: bool = False,
    frees_gradients: bool = False,
    kept: Mapping[str, int] = MappingProxyType({}),
    standing: Iterable[int] = (),
    states: Iterable[int] = (),
    scratch: Iterable[int] = (),
) -> Step:
    """Of one micro-batch of `rows` sequences of `length` tokens; of each, all but one are trained.

    `copied`: what trains is held in the frozen type, and stepped as copies. `frees_gradients`: none stays, as each is
    stepped at once, or they are there already, and are in `standing`: bytes of what is there from the start on.
    `states` are those of the optimizer's, tensor by tensor; `scratch` the blocks that its step holds at once beside.
    """
    steps = plan.steps
    compute = steps.train.autocast
    numbers = Numbers(
        frozen=BYTES[steps.load.dtype],
        trained=BYTES[steps.load.dtype if copied else steps.attach.dtype],
        compute=None if compute is None else BYTES[compute],
        scales_loss=compute == "float16",
    )
    quantized = stays_quantized(plan.settings.method.quantization, steps.load.config)
    shapes = Shapes(rows=rows, length=length)
    asked = (
        arch,
        trained,
        numbers,
        method,
        steps.patch,
        plan.settings.compute.compile,
        steps.pack.isolate_documents,
        quantized,
        shapes,
        reads,
    )
    more = (steps.load.device == "cpu", frees_gradients, dict(kept), tuple(standing), tuple(states), tuple(scratch))
    # most plans after the first differ in what no tensor's size follows from
    key = blake2b(repr((*asked, *more)).encode(), digest_size=16).digest()
    if key not in _walked:
        if len(_walked) == _KEPT:
            del _walked[next(iter(_walked))]
        _walked[key] = _walk(*asked, *more)
    return _walked[key]


_KEPT = 1024
_walked: dict[bytes, Step] = {}


def _walk(
    arch: Architecture,
    trained: dict[str, Shape],
    numbers: Numbers,
    method: Any,
    patch: Patch,
    compiled: bool,
    masked: bool,
    quantized: bool,
    batch: Shapes,
    reads: str,
    in_heap: bool,
    frees_gradients: bool,
    kept: dict[str, int],
    standing: tuple[int, ...],
    states: tuple[int, ...],
    scratch: tuple[int, ...],
) -> Step:
    ledger = Ledger(Heap() if in_heap else None)
    tape = Tape(numbers.compute, ledger, frees_gradients=frees_gradients, scales_loss=numbers.scales_loss)
    decoder = Decoder(
        tape,
        arch,
        trained,
        numbers,
        method=method,
        attention=patch.attention,
        group=patch.group_size,
        masked=masked,
        quantized=quantized,
        fused=patch.kernels != "none",
        rope=patch.kernels != "none"
        and patch.activation_checkpointing != "selective"
        and arch.kind not in LIGER_WITHOUT_ROPE,
        recomputed=patch.recomputed(len(arch.blocks)),
        selective=patch.activation_checkpointing == "selective",
        kept=kept,
        turns=gives_back(patch, len(arch.blocks), compiled=compiled),
    )
    there = [Storage(tape.ledger, count) for count in standing]
    with _uncollected():
        first = _once(tape, decoder, batch, reads)
        there += [Storage(tape.ledger, count) for count in states]
        tape.ledger.pass_by(*scratch)
        tape.gradients.clear()
        if tape.ledger.heap is None:
            return first
        _once(tape, decoder, batch, reads)
        tape.ledger.pass_by(*scratch)
    return replace(first, heap=tape.ledger.heap.peak)


@contextmanager
def _uncollected() -> Iterator[None]:
    """A tape's tensors go by their references alone: looking for cycles takes half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _once(tape: Tape, decoder: Decoder, batch: Shapes, reads: str) -> Step:
    """A forward and a backward pass, in bytes beside what was there before."""
    ledger, arch = tape.ledger, decoder.arch
    start = ledger.peak = ledger.now
    hidden = decoder.states(batch)
    forward = ledger.peak
    if reads == "states":
        made = score(tape, hidden, batch.rows, arch.hidden)
        before = ledger.now
        del hidden
    else:
        chosen = tape.operation([hidden], batch.rows * (batch.length - 1) * arch.hidden, hidden.size)
        del hidden
        before = ledger.peak = ledger.now
        made = _LOSSES[reads](tape, chosen, decoder.head(), arch.vocabulary)
        del chosen
    logits = max(0, ledger.peak - before)
    forward = max(forward, ledger.peak)
    tape.leave_autocast()
    saved = ledger.peak = ledger.now
    if made.node is not None:  # nothing trains
        tape.backward(made)
    return Step(saved=saved - start, logits=logits, forward=forward - start, backward=ledger.peak - start, heap=0)
