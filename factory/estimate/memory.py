"""A run's peak of memory: each moment of a training step in a closed form, of which the largest counts.

Weights and the optimizer's state follow from shapes; what comes and goes within a step from `factory.estimate.step`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod

from factory.architecture import Architecture, Shape, elements, media_of
from factory.config import registry
from factory.estimate import runtime
from factory.estimate.anatomy import is_plain
from factory.estimate.step import Step, step
from factory.estimate.tuned import Tuned
from factory.optimizers.spec import MADE_EARLY, PACKAGES, blocks, scratch, state_bytes, unpaged
from factory.plan.plan import BYTES, Compiled, Memory
from factory.quantizers.spec import IN_PLACE, stays_quantized, weight_bytes
from factory.ranks import spec as ranks
from factory.stages.rows import samples_answers

READING = "reading"  # the moment before the first step, where it may be the highest


def memory(
    tuned: Tuned, *, rows: int, length: int, capacity: int | None, frozen: int = 0, rolled: int = 0, cuda: bool = False
) -> Memory:
    """Of micro-batches of `rows` sequences of `length` tokens, in one process.

    `frozen`: bytes of what is held beside the model; `rolled`: of what answers are sampled with, in place of a step's.
    `cuda`: whether torch was built for it.
    """
    kept, load = _kept(tuned, frozen), tuned.steps.load
    found = _step(tuned, kept, rows, length)
    instants = _instants(tuned, kept, found, rolled)
    slack = resident = 0
    if load.device == "cpu":
        slack = max(0, kept.weights + found.heap - max(instants[name] for name in ("forward", "backward", "step")))
        resident = _resident(tuned, cuda=cuda)
    instants = {name: resident + slack + count for name, count in instants.items()}
    if read := _read(tuned, kept.base):
        instants[READING] = resident + read
    total = max(instants.values())
    return Memory(
        weights=kept.weights,
        constants=kept.constants,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=found.saved,
        logits=found.logits,
        buffers=max(found.forward, found.backward) - found.saved,
        slack=slack,
        runtime=resident,
        instants=instants,
        total=total,
        capacity=capacity,
        fits=None if capacity is None else total <= capacity,
        uncalibrated=tuple(_uncalibrated(tuned.arch, tuned)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Bytes of what a process has from step to step; `base` and `whole_gradients` before any strategy splits them."""

    weights: int
    constants: int  # of the weights
    gradients: int
    optimizer: int
    base: int
    whole_gradients: int


def _kept(tuned: Tuned, frozen: int) -> Kept:
    base, constants = _weights(tuned)
    whole = _whole(tuned, base)
    share = {name: _share(name, count, tuned) for name, count in whole.items()}
    return Kept(
        weights=share["weights"] + frozen,
        constants=constants,
        gradients=share["gradients"],
        optimizer=share["optimizer"],
        base=base,
        whole_gradients=whole["gradients"],
    )


def _whole(tuned: Tuned, base: int) -> dict[str, int]:
    """Bytes of what a strategy may split, before it does; `base` are the model's weights."""
    steps, shapes, heads = tuned.steps, tuned.shapes, tuned.heads
    copied = registry.hook(tuned.spec, "copied")
    copies = 4 * copied(tuned.method, shapes, tuned.arch, mixed=steps.train.autocast is not None) if copied else 0
    present = registry.hook(tuned.spec, "gradients")
    trained = present(tuned.method, shapes, tuned.arch) if present else elements(shapes.values())
    gradients = (trained + elements(heads.values())) * tuned.number
    gradients += sum(count - prod(shapes[name]) * tuned.number for name, count in tuned.kept.items())
    return {
        "weights": base + copies + elements(heads.values()) * tuned.number,
        "gradients": gradients,
        "optimizer": _states(tuned, tuned.settings.stage.optimizer, tuned.number),
    }


def _states(tuned: Tuned, optimizer: str, number: int) -> int:
    """Bytes on the device of what trains as numbers of so many bytes."""
    own = tuned.spec.optimizer_bytes(tuned.method, optimizer, tuned.shapes, tuned.arch, number)
    return own + state_bytes(optimizer, tuned.heads, tuned.arch, number)


def offloaded(tuned: Tuned) -> tuple[str, int]:
    """Bytes that a process keeps in the host's memory, off its GPU, and the setting that has them there.

    A paged state comes to the GPU to be stepped and may stay while there is room, but a checkpoint is written from the
    host's memory.
    """
    hardware, optimizer = tuned.settings.hardware, tuned.settings.stage.optimizer
    if hardware.offload:
        whole = _whole(tuned, _weights(tuned)[0])
        moved = sum(ceil(whole[name] / hardware.num_processes) for name in ranks.SPLIT[hardware.strategy])
        return "hardware.offload=true", moved
    paged = 0
    if tuned.steps.load.device == "cuda" and optimizer != unpaged(optimizer):
        paged = _states(tuned, unpaged(optimizer), BYTES["float32"]) - _states(tuned, optimizer, BYTES["float32"])
    return f"stage.optimizer={optimizer}", paged


def on_host(tuned: Tuned) -> int:
    """Return the bytes of the host's memory that a process with a GPU holds at most.

    They are its libraries, what is offloaded, and the weights where they wait there whole to be split.
    """
    starts = registry.starts_from_weights(tuned.spec, tuned.method)
    waits = ranks.reads_on_host(tuned, starts=starts) and not tuned.steps.train.ranks.sharded_loading
    return _resident(tuned, cuda=True) + max(offloaded(tuned)[1], _weights(tuned)[0] if waits else 0)


def _step(tuned: Tuned, kept: Kept, rows: int, length: int) -> Step:
    stage, expanded, everything = tuned.settings.stage, tuned.expanded, tuned.everything
    states = _spread(kept.optimizer, everything)
    early = stage.optimizer in MADE_EARLY and not tuned.in_turns
    gradients = [prod(shape) * tuned.number for shape in everything.values()] if tuned.accumulates else []
    return step(
        expanded,
        _at_one_time(tuned.shapes, expanded) if tuned.in_turns else tuned.shapes,
        tuned,
        tuned.method,
        rows=rows,
        length=length,
        reads=registry.hook(registry.spec("stages", stage.name), "READS", "tokens"),
        copied=tuned.in_turns,
        frees_gradients=tuned.layerwise or tuned.accumulates,
        kept=tuned.kept,
        standing=[*(states if early else []), *gradients],
        states=[] if early else states,
        scratch=blocks(stage.optimizer, tuned.largest, tuned.number, tuned.steps.load.device),
    )


def _instants(tuned: Tuned, kept: Kept, found: Step, rolled: int) -> dict[str, int]:
    """Bytes of the model and its step at each moment, without those of the process."""
    held, standing = kept.weights + kept.optimizer, kept.gradients if tuned.accumulates else 0
    stepping = scratch(tuned.settings.stage.optimizer, tuned.largest, tuned.number, tuned.steps.load.device)
    narrow = 0 if tuned.in_turns else _narrow(tuned)
    sampling = rolled + narrow if rolled else 0
    return {
        "forward": held + standing + max(sampling, found.forward),
        "backward": held + standing + max(0, found.backward - (kept.whole_gradients - kept.gradients)),
        "step": held + kept.gradients + stepping,
        "saving": held + narrow,
    }


def _resident(tuned: Tuned, *, cuda: bool) -> int:
    """Bytes of a process on a CPU whatever the model's size: what is imported, and buffers of kernels."""
    load, settings = tuned.steps.load, tuned.settings
    adapter = (
        load.adapter is not None or registry.hook(registry.spec("methods", settings.method.name), "peft") is not None
    )
    bitsandbytes = stays_quantized(settings.method.quantization, load.config) or settings.stage.optimizer in PACKAGES
    imported = runtime.resident(tuned.arch, adapter=adapter, bitsandbytes=bitsandbytes, cuda=cuda)
    return imported + runtime.PRODUCTS


def _read(tuned: Tuned, base: int) -> int:
    """Bytes of the model while it is read, where its weights are whole then and not afterwards; 0: they are not.

    An adapter's start leaves them beside what they are then quantized to; in place they are quantized layer by layer.
    A GPU takes its share as it is read, or all of them before they are split, unless they wait in the host's memory.
    """
    load, quantize, hardware = tuned.steps.load, tuned.settings.method.quantization, tuned.settings.hardware
    starts = registry.starts_from_weights(tuned.spec, tuned.method)
    whole = tuned.arch.parameters() * BYTES[load.read_as]
    if quantize.bits is not None and quantize.method in IN_PLACE:
        return whole
    if quantize.bits is not None and (starts or load.own_base == "rebuilt"):
        return whole + base
    splits = load.device == "cuda" and "weights" in ranks.SPLIT[hardware.strategy]
    if splits and tuned.steps.train.ranks.sharded_loading:
        return ceil(base / hardware.num_processes)
    return base if splits and not ranks.reads_on_host(tuned, starts=starts) else 0


def _share(name: str, count: int, tuned: Tuned) -> int:
    """Of one process, where its strategy splits these: on its device. Weights that are split are gathered by layer."""
    hardware = tuned.settings.hardware
    if name not in ranks.SPLIT[hardware.strategy]:
        return count
    share = 0 if hardware.offload else ceil(count / hardware.num_processes)
    if name != "weights":
        return share
    steps = tuned.steps
    packed = stays_quantized(tuned.settings.method.quantization, steps.load.config)
    gathered_as = steps.load.dtype if packed or steps.train.autocast is None else steps.train.autocast
    return min(count, share + ranks.gathered(tuned.expanded) * BYTES[gathered_as])


def _spread(count: int, shapes: dict[str, Shape]) -> list[int]:
    """The optimizer's bytes by tensor and, as most keep two numbers, in halves."""
    whole = elements(shapes.values()) or 1
    return [count * prod(shape) // (2 * whole) for shape in shapes.values() for _ in range(2)]


def _weights(tuned: Tuned) -> tuple[int, int]:
    """The weights, the adapters' with them, and of these the constants of quantized ones."""
    arch, shapes, quantize, load = tuned.expanded, tuned.shapes, tuned.settings.method.quantization, tuned.steps.load
    trained = load.dtype if tuned.in_turns else tuned.steps.attach.dtype
    linears = arch.linears() if stays_quantized(quantize, load.config) else {}
    quantized = {
        f"{name}.weight": weight_bytes(quantize, load.config, shape, load.dtype) for name, shape in linears.items()
    }
    bits = quantize.bits or 8
    total, constants, base = 0, 0, dict(arch.tensors())
    for name, shape in base.items():
        if name in quantized:
            total += quantized[name]
            constants += max(0, quantized[name] - prod(shape) * bits // 8)
        else:
            total += prod(shape) * BYTES[trained if name in shapes else load.dtype]
    total += elements(shape for name, shape in shapes.items() if name not in base) * BYTES[trained]
    return total, constants


def _at_one_time(shapes: dict[str, Shape], arch: Architecture) -> dict[str, Shape]:
    """Of what trains in turns, the first layer's: all above is walked back through."""
    own = arch.layer_tensors(0)
    return {name: shape for name, shape in shapes.items() if name in own} or shapes


def _narrow(tuned: Tuned) -> int:
    """Bytes of trained weights once more, in the type that they computed in, in the CPU's memory.

    So they are written, and so autocast keeps them while an answer is sampled. What trains in turns is held in that
    type already.
    """
    kept, steps = tuned.steps.train.autocast, tuned.steps
    if kept is None or kept == steps.attach.dtype or steps.load.device != "cpu":
        return 0
    return BYTES[kept] * elements(shape for name, shape in tuned.expanded.tensors() if name in tuned.everything)


# they keep dropout masks, or attention's scores, that the tape does not know
_ROUGH = frozenset({"falcon", "gpt2", "opt"})


def _uncalibrated(arch: Architecture, plan: Compiled) -> Iterable[str]:
    if arch.experts():
        yield "mixtures of experts"
    if not all(is_plain(block) for block in arch.blocks):
        yield "layers of another kind than attention with queries, keys and values"
    if arch.kind in _ROUGH:
        yield f"{arch.kind} models"
    if arch.parts:
        yield "audio" if media_of(arch) == ("audios",) else "images"
    if plan.steps.load.device != "cpu":
        yield "GPUs"
    if plan.settings.hardware.num_processes > 1:
        yield "several processes"
    if samples_answers(plan):
        yield "rollouts"
