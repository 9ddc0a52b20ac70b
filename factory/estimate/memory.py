"""A run's peak of memory: each moment of a training step in a closed form, of which the largest counts.

Weights and the optimizer's state follow from shapes; what comes and goes within a step from `factory.estimate.step`.
"""

from collections.abc import Iterable
from math import ceil, prod
from types import ModuleType
from typing import Any

from factory import heads, registry
from factory.architecture import Architecture, Shape
from factory.estimate import runtime
from factory.estimate.decoder import is_plain
from factory.estimate.step import step
from factory.optimizers.spec import blocks, is_of_bitsandbytes, scratch, state_bytes
from factory.plan import BYTES, Dtype, Load, Memory, Steps
from factory.quantizers.spec import stays_quantized, weight_bytes
from factory.ranks import spec as ranks
from factory.schema import Quantization

READING = "reading"  # the moment before the first step, where it may be the highest


def memory(
    *,
    arch: Architecture,
    spec: ModuleType,
    method: Any,
    steps: Steps,
    shapes: dict[str, Shape],
    rows: int,
    length: int,
    capacity: int,
    frozen: int = 0,
    rolled: int = 0,
    cuda: bool = False,
) -> Memory:
    """Of micro-batches of `rows` sequences of `length` tokens, in one process. `shapes` are what the method trains.

    `frozen`: bytes of what is held beside the model; `rolled`: of what answers are sampled with, in place of a step's.
    `cuda`: whether torch was built for it.
    """
    load, attach, train = steps.load, steps.attach, steps.train
    beside = heads.heads(train.stage, arch)
    everything, number = shapes | beside, BYTES[attach.dtype]
    present = registry.hook(spec, "gradients", _all)(method, shapes, arch)
    copied = registry.hook(spec, "copied")
    copies = 4 * copied(method, shapes, arch, mixed=train.autocast is not None) if copied else 0
    expanded = registry.hook(spec, "expanded", _as_it_is)(method, arch)

    base, constants = _weights(expanded, shapes, load, steps.quantize, load.dtype if copied else attach.dtype)
    states = spec.optimizer_bytes(method, train.optimizer, shapes, arch, number)
    states += state_bytes(train.optimizer, beside, arch, number)
    whole = (present + counted(beside)) * number
    weights = _share("weights", base + copies + counted(beside) * number, steps, expanded) + frozen
    gradients, optimizer = (
        _share(name, count, steps, expanded) for name, count in (("gradients", whole), ("optimizer", states))
    )

    layerwise, turns = bool(getattr(method, "layerwise", False)), copied is not None
    accumulates = train.gradient_accumulation_steps > 1 and not layerwise
    largest = max((prod(shape) for shape in everything.values()), default=0)
    stepping = scratch(train.optimizer, largest, number, load.device)
    found = step(
        expanded,
        _at_one_time(shapes, expanded) if turns else shapes,
        steps,
        method,
        rows=rows,
        length=length,
        reads=registry.hook(registry.spec("stages", train.stage), "READS", "tokens"),
        copied=turns,
        frees_gradients=layerwise or accumulates,
        standing=[prod(shape) * number for shape in everything.values()] if accumulates else (),
        states=_spread(optimizer, everything),
        scratch=blocks(train.optimizer, largest, number, load.device),
    )
    standing = gradients if accumulates else 0
    held = weights + optimizer
    instants = {
        "forward": held + standing + max(rolled, found.forward),
        "backward": held + standing + max(0, found.backward - (whole - gradients)),
        "step": held + gradients + stepping,
        "saving": held + (0 if turns else _saving(expanded, everything, steps)),
    }
    slack = resident = 0
    if load.device == "cpu":
        slack = max(0, weights + found.heap - max(instants[name] for name in ("forward", "backward", "step")))
        theirs = stays_quantized(steps.quantize, load.config) or is_of_bitsandbytes(train.optimizer)
        adapter = load.adapter is not None
        resident = runtime.resident(attach.method, arch, adapter=adapter, bitsandbytes=theirs, cuda=cuda)
        resident += runtime.kernels(steps.patch.attention, BYTES[train.autocast or load.dtype], length)
    instants = {name: resident + slack + count for name, count in instants.items()}
    if _read_whole(spec, method, steps):
        instants[READING] = resident + counted(dict(arch.tensors())) * BYTES[load.read_as] + base
    total = max(instants.values())
    return Memory(
        weights=weights,
        constants=constants,
        gradients=gradients,
        optimizer=optimizer,
        activations=found.saved,
        logits=found.logits,
        buffers=max(found.forward, found.backward) - found.saved,
        slack=slack,
        runtime=resident,
        instants=instants,
        total=total,
        capacity=capacity,
        fits=total <= capacity,
        uncalibrated=tuple(_uncalibrated(arch, steps)),
    )


def counted(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _read_whole(spec: ModuleType, method: Any, steps: Steps) -> bool:
    """Whether the weights are there whole beside what they are then quantized to: an adapter's start leaves them."""
    starts = registry.hook(spec, "starts_from_weights")
    taken = steps.load.own_base == "rebuilt" or (starts is not None and starts(method))
    return taken and steps.quantize.bits is not None


def _all(method: Any, shapes: dict[str, Shape], arch: Architecture) -> int:
    return counted(shapes)


def _as_it_is(method: Any, arch: Architecture) -> Architecture:
    return arch


def _share(name: str, count: int, steps: Steps, arch: Architecture) -> int:
    """Of one process, where its strategy splits these. Weights that are split are gathered layer by layer."""
    planned = steps.train.ranks
    if name not in ranks.SPLIT[planned.strategy]:
        return count
    share = ceil(count / planned.processes)
    if name != "weights":
        return share
    return min(count, share + ranks.gathered(arch) * BYTES[steps.load.dtype])


def _spread(count: int, shapes: dict[str, Shape]) -> list[int]:
    """The optimizer's bytes by tensor and, as most keep two numbers, in halves."""
    whole = counted(shapes) or 1
    return [count * prod(shape) // (2 * whole) for shape in shapes.values() for _ in range(2)]


def _weights(
    arch: Architecture, shapes: dict[str, Shape], load: Load, quantize: Quantization, trained: Dtype
) -> tuple[int, int]:
    """The weights, the adapters' with them, and of these the constants of quantized ones."""
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
    total += sum(prod(shape) for name, shape in shapes.items() if name not in base) * BYTES[trained]
    return total, constants


def _at_one_time(shapes: dict[str, Shape], arch: Architecture) -> dict[str, Shape]:
    """Of what trains in turns, the first layer's: all above is walked back through."""
    own = arch.layer_tensors(0)
    return {name: shape for name, shape in shapes.items() if name in own} or shapes


def _saving(arch: Architecture, shapes: dict[str, Shape], steps: Steps) -> int:
    """Bytes of the copies that are written: of trained weights, in the type that they computed in, in the CPU's memory.

    What trains in turns is held in that type already.
    """
    kept = steps.train.autocast
    if kept is None or kept == steps.attach.dtype or steps.load.device != "cpu":
        return 0
    return BYTES[kept] * sum(prod(shape) for name, shape in arch.tensors() if name in shapes)


# they keep dropout masks, or attention's scores, that the tape does not know
_ROUGH = frozenset({"falcon", "gpt2", "opt"})


def _uncalibrated(arch: Architecture, steps: Steps) -> Iterable[str]:
    if arch.experts():
        yield "mixtures of experts"
    if not all(is_plain(block) for block in arch.blocks):
        yield "layers of another kind than attention with queries, keys and values"
    if arch.kind in _ROUGH:
        yield f"{arch.kind} models"
    if arch.parts:
        yield "images"
    if steps.load.device != "cpu":
        yield "GPUs"
    if steps.train.ranks.processes > 1:
        yield "several processes"
    if "rollout_batch_size" in steps.train.own:
        yield "rollouts"
