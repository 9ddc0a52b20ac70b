"""A model's config.json to every tensor's name and shape, in closed form: no torch, no weights.

The counts equal what transformers builds on the meta device, to the last parameter (tests/test_architecture.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from factory.refusal import did_you_mean, refuse

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where dense decoders of the llama kind differ from each other."""

    attention_bias: bool | None = None  # of q, k, v; None: config.attention_bias, and then of o too
    mlp_bias: bool = False  # whether config.mlp_bias is read
    query_key_norm: bool = False
    head_dim: int | None = None  # where config.json leaves it out; None: hidden / heads


FAMILIES: dict[str, Family] = {
    "llama": Family(mlp_bias=True),
    "mistral": Family(attention_bias=False),
    "qwen2": Family(attention_bias=True),
    "qwen3": Family(query_key_norm=True, head_dim=128),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a dense decoder; `linears` are the adaptable projections of one layer as (out, in)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context_length: int
    linears: dict[str, Shape]
    layer_tensors: dict[str, Shape]

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Every parameter as transformers names it, a tied head left out (it is the embedding)."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self.layer_tensors.items():
                yield f"model.layers.{layer}.{name}", shape
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def parameters(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors())

    def forward_flops_per_token(self) -> int:
        """Multiply-adds counted as two, attention's own products left out (Kaplan et al. 2020, section 2.1)."""
        return 2 * (self.layers * sum(prod(shape) for shape in self.linears.values()) + self.vocabulary * self.hidden)


def architecture(config: dict[str, Any]) -> Architecture:
    """Reads a config.json's numbers. Raises UserError for a kind that the planner has no closed form for."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise refuse(
            "unknown-architecture",
            f"model_type={kind}",
            "the planner has no closed form for this architecture",
            hint=did_you_mean(kind, FAMILIES),
            known=", ".join(FAMILIES),
        )
    try:
        return _dense(kind, FAMILIES[kind], config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise refuse(
            "incomplete-config", f"config.json of a {kind} model", f"a number is missing or of the wrong type ({error})"
        ) from error


def _dense(kind: str, family: Family, config: dict[str, Any]) -> Architecture:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or family.head_dim or hidden // heads)
    linears: dict[str, Shape] = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    everywhere = family.attention_bias is None and bool(config.get("attention_bias"))
    biased = {name for name in linears if name.startswith("self_attn") and everywhere}
    if family.attention_bias:
        biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    if family.mlp_bias and config.get("mlp_bias"):
        biased |= {name for name in linears if name.startswith("mlp")}
    tensors: dict[str, Shape] = {}
    for name, shape in linears.items():
        tensors[f"{name}.weight"] = shape
        if name in biased:
            tensors[f"{name}.bias"] = (shape[0],)
    if family.query_key_norm:
        tensors |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    tensors |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    return Architecture(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        context_length=int(config["max_position_embeddings"]),
        linears=linears,
        layer_tensors=tensors,
    )
