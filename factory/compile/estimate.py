"""What a run will need, from the architecture alone. Parameters are exact, memory is coarse (docs/measurements.md)."""

import re
from dataclasses import dataclass
from math import ceil, prod
from types import ModuleType
from typing import Any

from factory import heads, registry
from factory.architecture import Architecture, Shape
from factory.optimizers.spec import state_bytes
from factory.plan import BYTES, LOSS_CHUNK, Dtype, Estimate, Load, Memory, Pack, Parameters, Patch, Range, Steps, Train
from factory.quantizers.spec import stays_quantized, weight_bytes
from factory.ranks import spec as ranks
from factory.schema import Quantization
from factory.stages.rows import rows_per_step

RUNTIME = 650 * 2**20  # resident memory of Python with torch, transformers and peft, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is known of the data before the tokenizer: rows to train on, and the longest row and all in bytes."""

    rows: Range
    longest_bytes: int
    bytes: int | None


def parameters(arch: Architecture, shapes: dict[str, Shape]) -> Parameters:
    known = {name for block in arch.blocks for name in (*block.linears, *block.experts)}
    by_module: dict[str, int] = {}
    for name, shape in shapes.items():
        module = _module(name, arch, known)
        by_module[module] = by_module.get(module, 0) + prod(shape)
    return Parameters(
        total=arch.parameters(),
        trainable=counted_in(shapes),
        trainable_by_module=by_module,
    )


def counted_in(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _module(name: str, arch: Architecture, known: set[str]) -> str:
    """`…layers.3.self_attn.q_proj.lora_A.default.weight` is of `self_attn.q_proj`, the longest known name in it."""
    words = name.partition(f"{arch.layers_at}.")[2].split(".")[1:]
    for end in range(len(words), 0, -1):
        if ".".join(words[:end]) in known:
            return ".".join(words[:end])
    return (".".join(words) or name.rpartition("model.")[2]).removesuffix(".weight").removesuffix(".bias")


def estimate(
    *,
    arch: Architecture,
    spec: ModuleType,
    method: Any,
    steps: Steps,
    sizes: Sizes,
    capacity: int,
    frozen: int = 0,
) -> Estimate:
    """`frozen`: bytes of what is held beside the model, a reward model's tensors."""
    load, patch, attach, pack, train = steps.load, steps.patch, steps.attach, steps.pack, steps.train
    shapes: dict[str, Shape] = spec.trainable(method, arch)
    gradients = registry.hook(spec, "gradients", _all)(method, shapes, arch)
    copied = registry.hook(spec, "copied")
    copies = copied(method, shapes, arch, mixed=train.autocast is not None) if copied else 0
    beside = heads.heads(train.stage, arch)
    counted = parameters(arch, shapes | beside)
    assert counted.trainable == attach.trainable
    arch = registry.hook(spec, "expanded", _as_it_is)(method, arch)
    length = pack.max_length
    if not pack.packing:  # a token is seldom shorter than 3 bytes; the template adds its own
        length = min(length, ceil(sizes.longest_bytes / 3) + 64)
    stage = registry.spec("stages", train.stage)
    sampled = registry.hook(stage, "rollout_bytes")
    rolled = sampled(train.own, arch, load.dtype, length) if sampled else 0
    length += stage.new_tokens(train.own) if sampled else 0
    tokens = train.batch_size * length
    parts = {
        "weights": _weights(arch, shapes, load, steps.quantize, load.dtype if copied else attach.dtype)
        + (copies * BYTES["float32"])
        + counted_in(beside) * BYTES[attach.dtype]
        + frozen,
        "gradients": (gradients + counted_in(beside)) * BYTES[attach.dtype],
        "optimizer": spec.optimizer_bytes(method, train.optimizer, shapes, arch)
        + state_bytes(train.optimizer, beside, arch),
        "activations": max(rolled, _activations(arch, tokens, patch, shapes, logits=heads.writes(train.stage))),
        "runtime": RUNTIME if load.device == "cpu" else 0,
    }
    parts |= _shares(parts, train, arch, load)
    total = sum(parts.values())
    per_token = arch.forward_flops_per_token()
    backward = per_token * (1 + min(1.0, counted.trainable / counted.total))
    return Estimate(
        parameters=counted,
        memory=Memory(**parts, total=total, capacity=capacity, fits=total <= capacity),
        steps=_steps(sizes, pack, train),
        flops_per_step=round(_flops(train, tokens, length, per_token, backward)),
    )


def _flops(train: Train, tokens: int, length: int, forward: float, backward: float) -> float:
    """Of a step. Answers that are rolled out are each sampled, read by the policy before, and trained several times."""
    if "rollout_batch_size" not in train.own:
        return (forward + backward) * tokens * train.micro_batches
    each = 2 * forward + train.own["update_epochs"] * (forward + backward)
    return each * train.own["rollout_batch_size"] * length


def _shares(parts: dict[str, int], train: Train, arch: Architecture, load: Load) -> dict[str, int]:
    """Of one process, what its strategy splits. Weights that are split are gathered layer by layer."""
    split = {name: ceil(parts[name] / train.ranks.processes) for name in ranks.SPLIT[train.ranks.strategy]}
    if "weights" in split:
        whole = ranks.gathered(arch) * BYTES[load.dtype]
        split["weights"] = min(parts["weights"], split["weights"] + whole)
    return split


def _all(method: Any, shapes: dict[str, Shape], arch: Architecture) -> int:
    return counted_in(shapes)


def _as_it_is(method: Any, arch: Architecture) -> Architecture:
    return arch


def _weights(arch: Architecture, shapes: dict[str, Shape], load: Load, quantize: Quantization, trained: Dtype) -> int:
    linears = arch.linears() if stays_quantized(quantize, load.config) else {}
    held = {f"{name}.weight": weight_bytes(quantize, load.config, shape, load.dtype) for name, shape in linears.items()}
    total = 0
    base = dict(arch.tensors())
    for name, shape in base.items():
        total += held.get(name) or prod(shape) * BYTES[trained if name in shapes else load.dtype]
    total += sum(prod(shape) for name, shape in shapes.items() if name not in base) * BYTES[trained]
    return total


def _activations(arch: Architecture, tokens: int, patch: Patch, shapes: dict[str, Shape], *, logits: bool) -> int:
    """Tensors that the backward pass needs, in 2 bytes but for the norms' float32 copies, and the largest `logits`.

    The backward pass ends at the lowest layer that is trained: below it nothing is kept.
    """
    attention = arch.heads * arch.head_dim
    layer = 18 * arch.hidden + 4 * attention + 8 * arch.kv_heads * arch.head_dim + 8 * arch.intermediate
    if patch.attention == "eager":
        layer += 6 * arch.heads * tokens
    at = re.compile(re.escape(arch.layers_at) + r"\.(\d+)\.")
    if not shapes:  # nothing is kept for a backward pass
        return tokens * layer + (min(tokens, LOSS_CHUNK) * arch.vocabulary * 10 if logits else 0)
    in_layers = [at.search(name) for name in shapes]
    layers = arch.layers - min(int(found[1]) if found else 0 for found in in_layers)
    matmuls = 6 * arch.hidden + 4 * attention + 4 * arch.kv_heads * arch.head_dim + 4 * arch.intermediate
    each = {False: layer, True: 2 * arch.hidden, "selective": matmuls}[patch.activation_checkpointing]
    kept = each * layers + (layer - each)  # of one layer all is there while it is computed again
    head_trained = None in in_layers
    if not logits:
        return tokens * kept
    largest = min(tokens, LOSS_CHUNK * (2 if head_trained else 1)) * arch.vocabulary * 10
    head = 6 * arch.vocabulary * arch.hidden if head_trained else 0
    return tokens * kept + largest + head


def _steps(sizes: Sizes, pack: Pack, train: Train) -> Range:
    if train.max_steps is not None:
        return Range(low=train.max_steps, high=train.max_steps)
    low, high = sizes.rows.low, sizes.rows.high
    if pack.packing and sizes.bytes is not None and high is not None:  # between 6 bytes and 1 byte a token
        low, packed = ceil(sizes.bytes / 6 / pack.max_length), ceil(sizes.bytes / pack.max_length) + 1
        high = min(packed, high) if pack.isolate_documents else packed
    elif pack.packing and not pack.isolate_documents:
        high = None  # a long document is many sequences
    sequences = rows_per_step(train)

    def steps(rows: int) -> int:
        return max(1, ceil(train.num_epochs * ceil(rows / sequences)))

    return Range(low=steps(low), high=None if high is None else steps(high))
