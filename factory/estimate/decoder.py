"""A decoder's forward pass on a tape: the operations of transformers' classes, in their order.

Kinds differ by their `Anatomy`; which linear layers there are is read off the architecture.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from factory.architecture import Architecture, Block, Shape
from factory.estimate.adapters import Beside, adapted
from factory.estimate.anatomy import ANATOMIES, Anatomy, is_plain, norms, roles
from factory.estimate.attention import Attention, Shapes
from factory.estimate.tape import STATISTIC, Tape, Tensor, Weight
from factory.kernels import LIGER_HEAD_NORMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Bytes of a number: of what is frozen, of what is trained, of what autocast computes in (None: no autocast).

    `scales_loss`: that is float16.
    """

    frozen: int
    trained: int
    compute: int | None
    scales_loss: bool = False


_FEED_FORWARD = ("gate", "gate_up", "up", "down")


class Decoder:
    """`trained` are the shapes of what is trained; `quantized`: linears dequantize.

    `fused`: Liger's RMSNorm and gated MLP stand in the model (liger-kernel 0.8.5, ops/rms_norm.py and ops/swiglu.py);
    `rope`: its rotary kernel too (ops/rope.py).
    `recomputed` are the first so many layers; `turns` are those before which the heap gives back what is free.
    """

    def __init__(
        self,
        tape: Tape,
        arch: Architecture,
        trained: dict[str, Shape],
        numbers: Numbers,
        *,
        method: Any,
        attention: str,
        group: int | None,
        masked: bool,
        quantized: bool,
        fused: bool,
        rope: bool,
        recomputed: int,
        selective: bool,
        kept: dict[str, int],
        turns: range = range(0),
    ):
        self.tape, self.arch, self.numbers, self.quantized = tape, arch, numbers, quantized
        self.anatomy = ANATOMIES.get(arch.kind, Anatomy())
        self.method, self.attention, self.group, self.masked = method, attention, group, masked
        self.fused, self.rope = fused, rope
        self.recomputed, self.selective, self.turns = recomputed, selective, turns
        self._trained, self._kept = trained, kept
        self._beside = _adapters(trained, numbers.trained)
        self._weights: dict[str, Weight] = {}
        self.angles: Tensor | None = None  # cosines and sines, which all layers share

    def weight(self, name: str, shape: Shape) -> Weight:
        if name not in self._weights:
            trains = name in self._trained
            size = self.numbers.trained if trains else self.numbers.frozen
            self._weights[name] = Weight(prod(shape), size, trains, self._kept.get(name))
        return self._weights[name]

    # --- the model

    def states(self, batch: Shapes) -> Tensor:
        """The last hidden states: (tokens, width)."""
        tape, arch = self.tape, self.arch
        name = f"{arch.embedding}.weight"
        table = self.weight(name, arch.outside[name])
        hidden = tape.operation([], batch.tokens * arch.hidden, table.size, trains=(table,))
        angles = 2 * batch.length * arch.head_dim
        self.angles = tape.new(angles, hidden.size) if self.anatomy.rotary else None
        for index, block in enumerate(arch.blocks):
            layer = Layer(self, index, block, batch)
            if index < self.recomputed:
                before = tape.ledger.give_back if index in self.turns else None
                hidden = tape.checkpoint(layer, hidden, selective=self.selective, before=before)
            else:
                hidden = layer(hidden)
        if not self.recomputed:  # else each layer is given them once more
            self.angles = None
        if self.turns:
            tape.ledger.give_back()
        return self.norm(hidden, self._last_norm(), arch.hidden)

    def _last_norm(self) -> dict[str, Shape]:
        """The tensors of the norm after the layers, the last vectors that stand outside."""
        found = {name: shape for name, shape in self.arch.outside.items() if len(shape) == 1 and "norm" in name}
        found |= {name: shape for name, shape in self.arch.outside.items() if ".ln_f." in name}
        return found

    def head(self) -> Weight:
        """The language model's head, or the embedding in its place."""
        name = f"{self.arch.embedding if self.arch.tied else self.arch.head}.weight"
        return self.weight(name, self.arch.outside[name])

    # --- parts of a layer

    def norm(self, value: Tensor, tensors: dict[str, Shape], width: int, *, fused: bool = True) -> Tensor:
        weights = [self.weight(name, shape) for name, shape in tensors.items()]
        if self.fused and fused and weights and self.anatomy.norm != "layer":
            return self._rms_fused(value, weights[0], width)
        forms = {"rms": self._rms, "rms_wide": self._rms_wide, "layer": self._layer_norm}
        return forms[self.anatomy.norm](value, weights, width)

    def _rms_fused(self, value: Tensor, weight: Weight, width: int) -> Tensor:
        """Liger's RMSNorm keeps what goes in and a number per row, and computes in registers."""
        statistics = value.count // width * STATISTIC
        return self.tape.operation(
            [value], value.count, value.size, saves=(value,), statistics=statistics, trains=(weight,)
        )

    def _normalized(self, value: Tensor, width: int) -> Tensor:
        """x / rms(x) in float32; the square's and the product's gradients both need x."""
        tape = self.tape
        wide = tape.cast(value, 4)
        tape.ledger.pass_by(wide.bytes)  # the squares
        statistics = value.count // width * STATISTIC
        return tape.operation(
            [wide], wide.count, 4, saves=(wide,), statistics=statistics, backward_scratch=[wide.bytes] * 3
        )

    def _rms(self, value: Tensor, weights: list[Weight], width: int) -> Tensor:
        """weight * normalized.to(the type that came in), as LlamaRMSNorm."""
        made = self.tape.cast(self._normalized(value, width), value.size)
        return self.tape.scaled(made, weights[0]) if weights else made

    def _rms_wide(self, value: Tensor, weights: list[Weight], width: int) -> Tensor:
        """(normalized * (1 + weight)).type_as(x), as GemmaRMSNorm."""
        wide = replace_size(weights[0], 4)
        return self.tape.cast(self.tape.scaled(self._normalized(value, width), wide), value.size)

    def _layer_norm(self, value: Tensor, weights: list[Weight], width: int) -> Tensor:
        statistics = 2 * value.count // width * STATISTIC
        return self.tape.operation(
            [value], value.count, value.size, saves=(value,), statistics=statistics, trains=tuple(weights)
        )

    def linear(self, value: Tensor, name: str, shape: Shape) -> Tensor:
        """A linear layer of the decoder, (out, in), with what stands beside it."""
        base = partial(self._base, name=name, shape=shape)
        tensors = self._beside.get(name)
        if tensors is None:
            return base(value)
        own = Beside(tensors, shape[0], shape[1], self.method)
        return adapted(self.tape, value, base, own)

    def _base(self, value: Tensor, *, name: str, shape: Shape) -> Tensor:
        weight, tape = self.weight(f"{name}.weight", shape), self.tape
        if not self.quantized:
            bias = self.weight(f"{name}.bias", shape[:1]) if f"{name}.bias" in self._trained else None
            return tape.product(value, weight, shape[0], bias=bias)
        size = tape.compute or self.numbers.frozen
        whole = weight.count * size  # dequantized, in both directions
        count = value.count // shape[1] * shape[0]
        return tape.operation([value], count, size, scratch=(whole,), backward_scratch=(whole,))


def replace_size(weight: Weight, size: int) -> Weight:
    """The weight where it is multiplied in another type; its gradient is its own."""
    return weight if weight.size == size else Weight(weight.count, size, weight.trained)


class Layer:
    """One decoder layer as a function of hidden states, (tokens, width)."""

    def __init__(self, decoder: Decoder, index: int, block: Block, batch: Shapes):
        self.decoder, self.block, self.batch = decoder, block, batch
        self.at = f"{decoder.arch.layers_at}.{index}."
        self.roles = roles(block)
        self.norms = norms(block)
        self.trains = any(self.at in name for name in decoder._trained)

    def __call__(self, hidden: Tensor) -> Tensor:
        self.stream = hidden.size  # bytes of a number
        return _ORDERS[self.decoder.anatomy.order](self, hidden)

    def norm(self, number: int, value: Tensor) -> Tensor:
        """The layer's norm of this number, in the order of its code; the value itself where it has fewer."""
        if number >= len(self.norms):
            return value
        return self.decoder.norm(value, self._named(self.norms[number]), self.decoder.arch.hidden)

    def _named(self, tensors: dict[str, Shape]) -> dict[str, Shape]:
        return {self.at + name: shape for name, shape in tensors.items()}

    def linear(self, value: Tensor, role: str) -> Tensor:
        name = self.roles[role]
        return self.decoder.linear(value, self.at + name, self.block.linears[name])

    # --- attention

    def attention(self, value: Tensor) -> Tensor:
        if not is_plain(self.block):
            return self._other(value)
        query, keys, values = self._heads(value)
        query, keys = (self._head_norm(each, name) for each, name in zip((query, keys), _HEAD_NORMS, strict=True))
        if self.decoder.anatomy.rotary:
            query, keys = self._turned(query), self._turned(keys)
        decoder = self.decoder
        kernels = Attention(decoder.tape, decoder.arch, decoder.anatomy, self.batch, decoder.group, decoder.masked)
        attended = kernels(decoder.attention, query, keys, values)
        return self.linear(attended, "out")

    def _other(self, value: Tensor) -> Tensor:
        """What has other layers than queries, keys and values (latent attention, convolutions): roughly, each kept."""
        tape, made = self.decoder.tape, value
        for name, (outputs, inputs) in self.block.linears.items():
            if name in {self.roles.get(role) for role in _FEED_FORWARD}:
                continue
            entry = tape.operation([value], self.batch.tokens * inputs, value.size)
            given = self.decoder.linear(entry, self.at + name, (outputs, inputs))
            made = tape.operation([made, given], value.count, given.size, saves=(given,))
        return made

    def _heads(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if "qkv" not in self.roles:
            return self.linear(value, "q"), self.linear(value, "k"), self.linear(value, "v")
        arch, tokens = self.decoder.arch, self.batch.tokens
        fused = self.linear(value, "qkv")
        counts = (arch.heads, arch.kv_heads, arch.kv_heads)
        cut = [self.decoder.tape.sliced(fused, tokens * count * arch.head_dim) for count in counts]
        if self.decoder.anatomy.copies_heads:
            cut = [self.decoder.tape.pointwise(each) for each in cut]
        return cut[0], cut[1], cut[2]

    def _head_norm(self, value: Tensor, name: str) -> Tensor:
        tensors = {key: shape for key, shape in self.block.tensors.items() if re.search(rf"\.{name}(\.|$)", key)}
        if not tensors:
            return value
        fused = self.decoder.arch.kind in LIGER_HEAD_NORMS
        return self.decoder.norm(value, self._named(tensors), self.decoder.arch.head_dim, fused=fused)

    def _turned(self, value: Tensor) -> Tensor:
        """x cos + rotate_half(x) sin, in the wider of x's type and of the hidden states'."""
        tape = self.decoder.tape
        angles = (self.decoder.angles,) if self.decoder.angles is not None else ()
        if self.decoder.rope:  # written over what goes in, unless that lies otherwise
            return tape.operation([value], value.count, value.size, saves=angles)
        size = max(value.size, self.stream)
        turned = tape.operation([value], value.count, size, saves=angles)
        half = tape.concatenated(
            [tape.pointwise(tape.sliced(value, value.count // 2)), tape.sliced(value, value.count // 2)]
        )
        half = tape.operation([half], half.count, size)
        return tape.add(turned, half)

    # --- feed forward

    def feed_forward(self, value: Tensor) -> Tensor:
        if not self.block.experts:
            return self._dense(value)
        routed = self._experts(value)
        return self.decoder.tape.add(routed, self._dense(value)) if "down" in self.roles else routed

    def _experts(self, value: Tensor) -> Tensor:
        """A gated MLP on each token once for each of its experts; what it is multiplied with is kept."""
        tape, arch = self.decoder.tape, self.decoder.arch
        weights = [self.decoder.weight(self.at + name, shape) for name, shape in self.block.experts.items()]
        count = next(iter(self.block.experts.values()))[0]
        routed = max(1, round(self.batch.tokens * count * arch.active_expert_share))
        width = max(1, min(weight.count for weight in weights) // (count * arch.hidden))
        trains = tuple(weight for weight in weights if weight.trained)
        size = tape.compute or value.size
        entry = tape.cast(tape.operation([value], routed * arch.hidden, value.size), size)
        both = tape.operation([entry], routed * 2 * width, size, saves=(entry,) if trains else (), trains=trains)
        gate, up = (tape.sliced(both, both.count // 2) for _ in range(2))
        inner = tape.multiply(self._activated(gate), up)
        made = tape.operation([inner], routed * arch.hidden, size, saves=(inner,) if trains else ())
        return tape.operation([made], value.count, size, saves=(made,))

    def _dense(self, value: Tensor) -> Tensor:
        tape = self.decoder.tape
        if "gate_up" in self.roles:
            both = self.linear(value, "gate_up")
            gate, up = (tape.sliced(both, both.count // 2) for _ in range(2))
            if not self.decoder.fused:
                return self.linear(tape.multiply(up, self._activated(gate)), "down")
            gate, up = tape.pointwise(gate), tape.pointwise(up)  # Liger's kernel reads whole rows
            del both
            made = self._gated(gate, up)
            del gate, up
            return self.linear(made, "down")
        if "gate" in self.roles:
            gate, up = self.linear(value, "gate"), self.linear(value, "up")
            made = self._gated(gate, up)
            del gate, up
            return self.linear(made, "down")
        if "up" not in self.roles or "down" not in self.roles:
            return tape.pointwise(value)
        return self.linear(self._activated(self.linear(value, "up")), "down")

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """activation(gate) * up; Liger's keeps both, and writes their gradients over them."""
        tape = self.decoder.tape
        if not self.decoder.fused:
            return tape.multiply(self._activated(gate), up)
        into = [value.storage if value.node else None for value in (gate, up)]
        return tape.operation([gate, up], up.count, up.size, saves=(gate, up), backward=lambda _: list(into))

    def _activated(self, value: Tensor) -> Tensor:
        tape = self.decoder.tape
        for _ in range(self.decoder.anatomy.activation_keeps):
            value = tape.pointwise(value, saves_input=True)
        return value

    # --- orders

    def before(self, hidden: Tensor) -> Tensor:
        hidden = self.decoder.tape.add(hidden, self.attention(self.norm(0, hidden)))
        return self.decoder.tape.add(hidden, self.feed_forward(self.norm(1, hidden)))

    def around(self, hidden: Tensor) -> Tensor:
        hidden = self.decoder.tape.add(hidden, self.norm(1, self.attention(self.norm(0, hidden))))
        return self.decoder.tape.add(hidden, self.norm(3, self.feed_forward(self.norm(2, hidden))))

    def after(self, hidden: Tensor) -> Tensor:
        hidden = self.decoder.tape.add(hidden, self.norm(0, self.attention(hidden)))
        return self.decoder.tape.add(hidden, self.norm(1, self.feed_forward(hidden)))

    def parallel(self, hidden: Tensor) -> Tensor:
        normed = self.norm(0, hidden)
        attended = self.attention(normed)
        return self.decoder.tape.add(self.decoder.tape.add(attended, self.feed_forward(normed)), hidden)

    def parallel_two(self, hidden: Tensor) -> Tensor:
        attended = self.attention(self.norm(0, hidden))
        fed = self.feed_forward(self.norm(1, hidden))
        return self.decoder.tape.add(self.decoder.tape.add(fed, attended), hidden)


_HEAD_NORMS = ("(?:q_norm|query_layernorm|q_layernorm)", "(?:k_norm|key_layernorm|k_layernorm)")
_ORDERS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "before": Layer.before,
    "around": Layer.around,
    "after": Layer.after,
    "parallel": Layer.parallel,
    "parallel_two": Layer.parallel_two,
}


_ADAPTER = re.compile(
    r"^(?:base_model\.model\.)?(.+?)\.((?:lora|vera|ia3|oft|hada|lokr)_[A-Za-z0-9_]+)(?:\.default)?(?:\.weight)?$"
)


def _adapters(trained: dict[str, Shape], size: int) -> dict[str, dict[str, Weight]]:
    """The adapters' tensors by the linear layer that they stand beside."""
    found: dict[str, dict[str, Weight]] = {}
    for name, shape in trained.items():
        if at := _ADAPTER.match(name):
            found.setdefault(at[1], {})[at[2]] = Weight(prod(shape), size, trained=True)
    return found
