"""What planning knows of a model: its tensors, layer by layer, and the numbers that its activations follow from."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import Any

from factory.architecture.traits import Traits

Shape = tuple[int, ...]


def elements(shapes: Iterable[Shape]) -> int:
    """Numbers in all of them together."""
    return sum(map(prod, shapes))


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer, names as within the layer.

    `tensors` has every parameter; `linears` the modules that an adapter can stand beside, as (out, in), routers of
    experts left out; `experts` those of `tensors` that hold the matrices of all experts, stacked.
    """

    tensors: dict[str, Shape] = field(default_factory=dict)
    linears: dict[str, Shape] = field(default_factory=dict)
    experts: dict[str, Shape] = field(default_factory=dict)

    def linear(self, name: str, out: int, inputs: int, *, bias: bool = False, transposed: bool = False) -> None:
        """`transposed`: the weight lies as (in, out), as GPT-2's Conv1D keeps it."""
        self.linears[name] = (out, inputs)
        self.tensors[f"{name}.weight"] = (inputs, out) if transposed else (out, inputs)
        if bias:
            self.tensors[f"{name}.bias"] = (out,)

    def norm(self, name: str, *shape: int, bias: bool = False) -> None:
        self.tensors[f"{name}.weight"] = shape
        if bias:
            self.tensors[f"{name}.bias"] = shape

    def stacked(self, name: str, shape: Shape) -> None:
        self.tensors[name] = self.experts[name] = shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers that every family has, their names made uniform."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int | None  # None: config.json does not say
    tied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture(Numbers):
    """`blocks` are the decoder layers; `outside` is all else: embedding, last norm, head, and what sees or hears.

    `parts` names what a model has beside what reads text, by the prefix of its tensors; `part_linears` are the linear
    layers in there, as far as they are outside the decoder. A tied head is no tensor of its own: it is the
    embedding.
    """

    kind: str  # model_type
    layers_at: str = "model.layers"
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    blocks: tuple[Block, ...]
    outside: dict[str, Shape]
    parts: dict[str, str] = field(default_factory=dict)
    part_linears: dict[str, Shape] = field(default_factory=dict)
    new_rows: range = range(0)  # ids whose rows nobody has trained yet; an adapter trains them
    active_expert_share: float = 1.0  # of the experts: those that a token passes through
    fixed: tuple[str, ...] = ()  # parameters that the model's class never trains, or that nothing it gives follows from
    traits: Traits | None = None  # of a kind without a closed form, as its class says; None: those of its kind

    @property
    def layers(self) -> int:
        return len(self.blocks)

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Every parameter as transformers names it."""
        yield from self.outside.items()
        for index in range(self.layers):
            yield from self.layer_tensors(index).items()

    def layer_tensors(self, index: int) -> dict[str, Shape]:
        return {f"{self.layers_at}.{index}.{name}": shape for name, shape in self.blocks[index].tensors.items()}

    def linears(self) -> dict[str, Shape]:
        """The linear layers of the decoder by their whole names, as (out, in); the head is not one of them."""
        return self._everywhere("linears")

    def experts(self) -> dict[str, Shape]:
        """The stacked experts' parameters by their whole names."""
        return self._everywhere("experts")

    def _everywhere(self, kind: str) -> dict[str, Shape]:
        return {
            f"{self.layers_at}.{index}.{name}": shape
            for index, block in enumerate(self.blocks)
            for name, shape in getattr(block, kind).items()
        }

    def parameters(self) -> int:
        return elements(shape for _, shape in self.tensors())

    def forward_flops_per_token(self) -> int:
        """Multiply-adds counted as two, attention's own products left out (Kaplan et al. 2020, section 2.1)."""
        linears = elements(self.linears().values())
        experts = elements(self.experts().values()) * self.active_expert_share
        return round(2 * (linears + experts + self.vocabulary * self.hidden))

    def as_json(self) -> dict[str, Any]:
        """For another process: layers that are alike are written once."""
        alike: list[Block] = []
        for block in self.blocks:
            if block not in alike:
                alike.append(block)
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "new_rows"}
        values |= {"alike": [asdict(block) for block in alike], "blocks": [alike.index(b) for b in self.blocks]}
        return values | {"traits": self.traits and asdict(self.traits)}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Architecture":
        values: dict[str, Any] = dict(tree)
        alike = [Block(**{name: _shapes(part) for name, part in block.items()}) for block in values.pop("alike")]
        values["blocks"] = tuple(alike[index] for index in values["blocks"])
        values |= {name: _shapes(values[name]) for name in ("outside", "part_linears")}
        values["fixed"] = tuple(values["fixed"])
        traits = values["traits"]
        values["traits"] = traits and Traits(**traits | {"media": tuple(traits["media"])})
        return Architecture(**values)


def image_layers(layers_at: str, blocks: Iterable[Block]) -> dict[str, str]:
    """The decoder layers that attend to images, and that a text skips, as parts (Llama 3.2 Vision)."""
    found = [
        index for index, block in enumerate(blocks) if any(name.startswith("cross_attn.") for name in block.linears)
    ]
    return {f"layers.{index}": f"{layers_at}.{index}." for index in found}


def _shapes(tree: dict[str, list[int]]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in tree.items()}
