"""A decoder's forward pass on a tape: the operations of transformers' classes, in their order.

Kinds differ in their norms, in what follows what, and in their MLP's activation (`Anatomy`); which linear layers there
are is read off the architecture. Of a kind that is not in the table, llama's anatomy is taken.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any, Literal, NamedTuple

from factory.architecture import Architecture, Block, Shape
from factory.attention import BLOCK, BLOCKS, S2, key_step
from factory.estimate.adapters import Beside, adapted, is_low_rank, low_rank
from factory.estimate.tape import STATISTIC, Tape, Tensor, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """`order`: of norms and branches. `activation`: one operation, or as many as keep an input each."""

    norm: Literal["rms", "rms_wide", "layer"] = "rms"
    order: Literal["before", "around", "after", "parallel", "parallel_two"] = "before"
    activation_keeps: int = 1
    silu: bool = True  # of a gated MLP
    rotary: bool = True
    copies_heads: bool = False  # queries, keys and values are cut from one product, and copied
    caps_scores: bool = False  # cap tanh(scores / cap)
    masks: bool = False  # gives torch a mask of its own, with which there is no fused kernel on a CPU


_GEMMA = Anatomy(norm="rms_wide", order="around", silu=False)
ANATOMIES: dict[str, Anatomy] = {
    "gemma": Anatomy(norm="rms_wide", silu=False),
    "gemma2": replace(_GEMMA, caps_scores=True),
    "gemma3_text": _GEMMA,
    "glm4": Anatomy(order="around"),
    **dict.fromkeys(("olmo2", "olmo3"), Anatomy(norm="rms_wide", order="after")),
    "exaone4": Anatomy(order="after"),
    "phi": Anatomy(norm="layer", order="parallel", activation_keeps=4),
    **dict.fromkeys(("cohere", "cohere2"), Anatomy(norm="layer", order="parallel")),
    **dict.fromkeys(("starcoder2", "stablelm", "nemotron"), Anatomy(norm="layer")),
    "gpt_neox": Anatomy(norm="layer", order="parallel_two"),
    "falcon": Anatomy(norm="layer", order="parallel", copies_heads=True, masks=True),
    "gptj": Anatomy(norm="layer", order="parallel", activation_keeps=4),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo"), Anatomy(norm="layer", activation_keeps=4, rotary=False)),
    **dict.fromkeys(("bloom", "opt", "mpt"), Anatomy(norm="layer", rotary=False)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Bytes of a number: of what is frozen, of what is trained, of what autocast computes in (None: no autocast)."""

    frozen: int
    trained: int
    compute: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A batch: rows, and tokens in each."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


_LINEAR = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "qkv": ("qkv_proj", "query_key_value", "Wqkv", "W_pack", "wqkv", "c_attn"),
    "out": ("o_proj", "out_proj", "dense", "wo", "attn.c_proj"),
    "gate": ("gate_proj", "feed_forward.w1"),
    "gate_up": ("gate_up_proj",),
    "up": ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "feed_forward.w3"),
    "down": ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "feed_forward.w2", "mlp.c_proj"),
}


def roles(block: Block) -> dict[str, str]:
    """What each of a layer's linear layers is, by its name's end: role to name."""
    found: dict[str, str] = {}
    for name in block.linears:
        for role, ends in _LINEAR.items():
            if role not in found and any(f".{name}".endswith(f".{end}") for end in ends):
                found[role] = name
                break
    return found


_FEED_FORWARD = ("gate", "gate_up", "up", "down")


def is_plain(block: Block) -> bool:
    """Whether its attention has queries, keys and values, in one product or three, and one product after them."""
    found = roles(block)
    return "out" in found and ("qkv" in found or {"q", "k", "v"} <= found.keys())


class Fused(NamedTuple):
    """What of factory.fused stands in the model: norms and gated MLPs, and LoRA's layers."""

    layers: bool
    adapters: bool


class Decoder:
    """`trained` are the shapes of what is trained; `quantized`: linears dequantize.

    `turns` are the layers before which the heap gives back what is free.
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
        quantized: bool,
        fused: Fused,
        checkpointing: bool | Literal["selective"],
        turns: range = range(0),
    ):
        self.tape, self.arch, self.numbers, self.quantized, self.fused = tape, arch, numbers, quantized, fused
        self.anatomy = ANATOMIES.get(arch.kind, Anatomy())
        self.method, self.attention, self.group = method, attention, group
        self.checkpointing, self.turns = checkpointing, turns
        self._trained = trained
        self._beside = _adapters(trained, numbers.trained)
        self._weights: dict[str, Weight] = {}

    def weight(self, name: str, shape: Shape) -> Weight:
        found = self._weights.get(name)
        if found is None:
            trains = name in self._trained
            found = Weight(prod(shape), self.numbers.trained if trains else self.numbers.frozen, trains)
            self._weights[name] = found
        return found

    # --- the model

    def states(self, batch: Shapes) -> Tensor:
        """The last hidden states: (tokens, width)."""
        tape, arch = self.tape, self.arch
        name = f"{arch.embedding}.weight"
        table = self.weight(name, arch.outside[name])
        trains = (table,) if table.trained else ()
        hidden = tape.operation([], batch.tokens * arch.hidden, table.size, trains=trains)
        for index, block in enumerate(arch.blocks):
            layer = Layer(self, index, block, batch)
            if self.checkpointing:
                before = tape.ledger.give_back if index in self.turns else None
                hidden = tape.checkpoint(layer, hidden, selective=self.checkpointing == "selective", before=before)
            else:
                hidden = layer(hidden)
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

    def norm(self, value: Tensor, tensors: dict[str, Shape], width: int) -> Tensor:
        weights = [self.weight(name, shape) for name, shape in tensors.items()]
        if self.fused.layers and weights and self.anatomy.norm != "layer":
            return self._rms_fused(value, weights[0], width)
        forms = {"rms": self._rms, "rms_wide": self._rms_wide, "layer": self._layer_norm}
        return forms[self.anatomy.norm](value, weights, width)

    def _rms_fused(self, value: Tensor, weight: Weight, width: int) -> Tensor:
        """As `RMSNorm` of factory.fused: what goes in is kept, and a number for each token."""
        wide = value.count * 4
        size = value.size if self.anatomy.norm == "rms_wide" else max(value.size, weight.size)
        return self.tape.operation(
            [value],
            value.count,
            size,
            saves=(value,),
            statistics=value.count // width * STATISTIC,
            scratch=wide if value.size < 4 else 0,
            backward_scratch=2 * wide + (value.count * size if weight.trained or size < 4 else 0),
            trains=(weight,) if weight.trained else (),
        )

    def _normalized(self, value: Tensor, width: int) -> Tensor:
        """x / rms(x) in float32; the square's and the product's gradients both need x."""
        tape = self.tape
        wide = tape.cast(value, 4)
        tape.ledger.pass_by(wide.bytes)  # the squares
        statistics = value.count // width * STATISTIC
        return tape.operation(
            [wide], wide.count, 4, saves=(wide,), statistics=statistics, backward_scratch=3 * wide.bytes
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
        trains = tuple(weight for weight in weights if weight.trained)
        size = value.size
        return self.tape.operation(
            [value],
            value.count,
            size,
            saves=(value,),
            statistics=2 * value.count // width * STATISTIC,
            trains=trains,
        )

    def linear(self, value: Tensor, name: str, shape: Shape) -> Tensor:
        """A linear layer of the decoder, (out, in), with what stands beside it."""
        base = partial(self._base, name=name, shape=shape)
        tensors = self._beside.get(name)
        if tensors is None:
            return base(value)
        own = Beside(tensors, shape[0], shape[1], self.method)
        if self.fused.adapters and is_low_rank(self.tape, value, own):
            size = self.tape.compute or value.size
            made = size if self.quantized or self.numbers.frozen != size else 0
            return low_rank(self.tape, value, prod(shape) * made, own)
        return adapted(self.tape, value, base, own)

    def _base(self, value: Tensor, *, name: str, shape: Shape) -> Tensor:
        weight, tape = self.weight(f"{name}.weight", shape), self.tape
        if not self.quantized:
            bias = self._weights.get(f"{name}.bias") or self._bias(name, shape)
            return tape.product(value, weight, shape[0], bias=bias)
        size = tape.compute or self.numbers.frozen
        whole = weight.count * size  # dequantized, in both directions
        count = value.count // shape[1] * shape[0]
        return tape.operation([value], count, size, scratch=whole, backward_scratch=whole)

    def _bias(self, name: str, shape: Shape) -> Weight | None:
        return self.weight(f"{name}.bias", shape[:1]) if f"{name}.bias" in self._trained else None


def replace_size(weight: Weight, size: int) -> Weight:
    """The weight where it is multiplied in another type; its gradient is its own."""
    return weight if weight.size == size else Weight(weight.count, size, weight.trained)


class Layer:
    """One decoder layer as a function of hidden states, (tokens, width)."""

    def __init__(self, decoder: Decoder, index: int, block: Block, batch: Shapes):
        self.decoder, self.block, self.batch = decoder, block, batch
        self.at = f"{decoder.arch.layers_at}.{index}."
        self.roles = roles(block)
        self.norms = _norms(block)
        self.trains = any(self.at in name for name in decoder._trained)

    def __call__(self, hidden: Tensor) -> Tensor:
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
        kernels = {"eager": self._eager, S2: self._grouped, BLOCKS: self._by_blocks}
        attended = kernels.get(self.decoder.attention, self._fused)(query, keys, values)
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
        return self.decoder.norm(value, self._named(tensors), self.decoder.arch.head_dim) if tensors else value

    def _turned(self, value: Tensor) -> Tensor:
        """x cos + rotate_half(x) sin, in the wider of x's type and of the hidden states'."""
        tape = self.decoder.tape
        size = max(value.size, self.stream)
        turned = tape.operation([value], value.count, size)
        half = tape.concatenated(
            [tape.pointwise(tape.sliced(value, value.count // 2)), tape.sliced(value, value.count // 2)]
        )
        half = tape.operation([half], half.count, size)
        return tape.add(turned, half)

    def _compute(self, *values: Tensor) -> list[Tensor]:
        size = self.decoder.tape.compute
        return [value if size is None else self.decoder.tape.cast(value, size) for value in values]

    def _fused(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """torch's fused kernel: keeps what goes in, what comes out, and a number for each row of scores."""
        query, keys, values = self._compute(query, keys, values)
        arch, tape = self.decoder.arch, self.decoder.tape
        if self.decoder.anatomy.masks:
            return self._unfused(query, keys, values)
        made = tape.operation(
            [query, keys, values],
            query.count,
            query.size,
            saves=(query, keys, values),
            saves_output=True,
            statistics=self.batch.tokens * arch.heads * STATISTIC,
            dear=True,
        )
        # with as many keys as queries it comes out in another layout, and is copied
        return tape.pointwise(made) if arch.heads == arch.kv_heads else made

    def _by_blocks(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Keeps what goes in; copies of keys and values, and a block's scores, come and go."""
        query, keys, values = self._compute(query, keys, values)
        arch, tape, batch = self.decoder.arch, self.decoder.tape, self.batch
        step = key_step(batch.length)
        length = ceil(batch.length / step) * step
        rows = batch.rows * arch.heads * BLOCK * query.size
        scores, block = rows * length, rows * arch.head_dim
        wide = (keys.count + values.count) * query.size * length // batch.length
        return tape.operation(
            [query, keys, values],
            query.count,
            query.size,
            saves=(query, keys, values),
            scratch=2 * scores + wide + 2 * block,
            backward_scratch=3 * scores + 2 * wide + 4 * block,
            dear=True,
        )

    def _unfused(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """torch's own way without a fused kernel: the softmax of all scores, in float32, is kept."""
        tape, scores = self.decoder.tape, self.batch.rows * self.decoder.arch.heads * self.batch.length**2
        kept = (query, keys, values, tape.new(scores, 4))
        scratch = scores * 4 * 3 // 2
        made = tape.operation(
            [query, keys, values], query.count, query.size, saves=kept, scratch=scratch, backward_scratch=scratch
        )
        return tape.pointwise(made)

    def _grouped(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """S² attention: copies of both halves in groups go through the fused kernel (factory.attention.s2)."""
        tape = self.decoder.tape
        if self.decoder.group is None or self.batch.length <= self.decoder.group:
            return self._fused(query, keys, values)
        query, keys, values = self._compute(query, keys, values)
        sharing = self.decoder.arch.heads // self.decoder.arch.kv_heads
        if (self.decoder.arch.heads // 2) % sharing:  # heads of both halves share keys: each gets its own
            keys, values = (tape.operation([each], each.count * sharing, each.size) for each in (keys, values))
        query, keys, values = (tape.pointwise(each) for each in (query, keys, values))
        return tape.pointwise(tape.pointwise(self._fused(query, keys, values)))

    def _eager(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Whole matrices of scores, their softmax in float32 (transformers' eager_attention_forward)."""
        tape, arch, batch = self.decoder.tape, self.decoder.arch, self.batch
        query, keys, values = self._compute(query, keys, values)
        if arch.heads != arch.kv_heads:
            share = arch.heads // arch.kv_heads
            keys = tape.operation([keys], keys.count * share, keys.size)
            values = tape.operation([values], values.count * share, values.size)
        scores = batch.rows * arch.heads * batch.length**2
        saves = (*((keys,) if query.node else ()), *((query,) if keys.node else ()))
        weights = tape.pointwise(tape.operation([query, keys], scores, query.size, saves=saves))
        if self.decoder.anatomy.caps_scores:
            weights = tape.pointwise(weights)
            weights = tape.pointwise(tape.operation([weights], scores, weights.size, saves_output=True))
        weights = tape.pointwise(weights)  # the mask is added
        wide = tape.operation([tape.cast(weights, 4)], scores, 4, saves_output=True)
        narrow = tape.cast(wide, query.size)
        saves = (*((values,) if narrow.node else ()), *((narrow,) if values.node else ()))
        made = tape.operation([narrow, values], query.count, query.size, saves=saves)
        return tape.pointwise(made)

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
            return self.linear(tape.multiply(up, self._activated(gate)), "down")
        if "gate" in self.roles:
            gate, up = self.linear(value, "gate"), self.linear(value, "up")
            if self.decoder.fused.layers and self.decoder.anatomy.silu:
                made = tape.operation([gate, up], up.count, up.size, saves=(gate, up), backward_scratch=up.bytes)
            else:
                made = tape.multiply(self._activated(gate), up)
            del gate, up
            return self.linear(made, "down")
        if "up" not in self.roles or "down" not in self.roles:
            return tape.pointwise(value)
        return self.linear(self._activated(self.linear(value, "up")), "down")

    def _activated(self, value: Tensor) -> Tensor:
        tape = self.decoder.tape
        for _ in range(self.decoder.anatomy.activation_keeps):
            value = tape.pointwise(value, saves_input=True)
        return value

    @property
    def stream(self) -> int:
        """Bytes of a number of the hidden states."""
        return self._stream

    # --- orders

    def before(self, hidden: Tensor) -> Tensor:
        self._stream = hidden.size
        hidden = self.decoder.tape.add(hidden, self.attention(self.norm(0, hidden)))
        return self.decoder.tape.add(hidden, self.feed_forward(self.norm(1, hidden)))

    def around(self, hidden: Tensor) -> Tensor:
        self._stream = hidden.size
        hidden = self.decoder.tape.add(hidden, self.norm(1, self.attention(self.norm(0, hidden))))
        return self.decoder.tape.add(hidden, self.norm(3, self.feed_forward(self.norm(2, hidden))))

    def after(self, hidden: Tensor) -> Tensor:
        self._stream = hidden.size
        hidden = self.decoder.tape.add(hidden, self.norm(0, self.attention(hidden)))
        return self.decoder.tape.add(hidden, self.norm(1, self.feed_forward(hidden)))

    def parallel(self, hidden: Tensor) -> Tensor:
        self._stream = hidden.size
        normed = self.norm(0, hidden)
        attended = self.attention(normed)
        return self.decoder.tape.add(self.decoder.tape.add(attended, self.feed_forward(normed)), hidden)

    def parallel_two(self, hidden: Tensor) -> Tensor:
        self._stream = hidden.size
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
# as the code of a layer calls them
_NORM_ORDER = (
    "input_layernorm",
    "ln_1",
    "ln_attn",
    "norm_1",
    "attention_norm",
    "self_attn_layer_norm",
    "post_self_attn_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "ln_2",
    "ln_mlp",
    "norm_2",
    "ffn_norm",
    "final_layer_norm",
)


def _norms(block: Block) -> list[dict[str, Shape]]:
    """A layer's norms over the hidden states, each with its tensors."""
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in block.tensors.items():
        module = name.rpartition(".")[0]
        if module in _NORM_ORDER:
            found.setdefault(module, {})[name] = shape
    return [found[name] for name in _NORM_ORDER if name in found]


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
