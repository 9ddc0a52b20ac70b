"""A training step on a tape: how much activations, gradients and temporary buffers take at most."""

from dataclasses import dataclass
from typing import Any

from factory.architecture import Architecture, Shape
from factory.estimate.decoder import Decoder, Numbers, Shapes
from factory.estimate.loss import cross_entropy, log_probs, score
from factory.estimate.tape import Tape
from factory.plan import BYTES, Steps
from factory.quantizers.spec import stays_quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Bytes beside weights and the optimizer's state. `saved`: at the forward pass's end; `forward`, `backward`: most."""

    saved: int
    forward: int
    backward: int
    gradients: int


def step(
    arch: Architecture, trained: dict[str, Shape], steps: Steps, method: Any, *, rows: int, length: int, loss: str
) -> Step:
    """Of one micro-batch of `rows` sequences of `length` tokens; of each, all but one are trained."""
    compute = steps.train.autocast
    numbers = Numbers(
        frozen=BYTES[steps.load.dtype],
        trained=BYTES[steps.attach.dtype],
        compute=None if compute is None else BYTES[compute],
    )
    tape = Tape(numbers.compute)
    decoder = Decoder(
        tape,
        arch,
        trained,
        numbers,
        method=method,
        attention=steps.patch.attention,
        group=steps.patch.group_size,
        quantized=stays_quantized(steps.quantize, steps.load.config),
        checkpointing=steps.patch.activation_checkpointing,
    )
    hidden = decoder.states(Shapes(rows=rows, length=length))
    if loss == "score":
        made = score(tape, hidden, rows, arch.hidden)
    else:
        wanted = rows * (length - 1) * arch.hidden
        chosen = tape.operation([hidden], wanted, hidden.size)
        del hidden
        made = {"mean": cross_entropy, "log_probs": log_probs}[loss](tape, chosen, decoder.head(), arch.vocabulary)
        del chosen
    tape.leave_autocast()
    saved, forward = tape.ledger.now, tape.ledger.peak
    tape.ledger.peak = saved
    tape.backward(made)
    return Step(saved=saved, forward=forward, backward=tape.ledger.peak, gradients=tape.ledger.now)
