"""Decoders of the llama kind: attention with separate or fused projections, a gated or a plain MLP, a few norms.

Each family is a row of what differs. What has experts or a compressed attention has its rows in `experts.py` and
`latent.py`, built by the same `decoder`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from factory.architecture.positions import reach
from factory.architecture.types import Architecture, Block, Numbers, Shape

Config = dict[str, Any]
Flag = bool | str  # always so, or the key of config.json that decides

# config.json's older words for the same numbers
ALIASES = {
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "num_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "model_max_length": "max_position_embeddings",
    "padded_vocab_size": "vocab_size",
}


def decided(flag: Flag, config: Config) -> bool:
    return flag if isinstance(flag, bool) else bool(config.get(flag))


def uniform(config: Config, defaults: Config, aliases: dict[str, str] = ALIASES) -> Config:
    """The config with today's names of its keys, and its class's defaults where it leaves one out."""
    older = {aliases[key]: value for key, value in config.items() if key in aliases}
    return {**defaults, **older, **config}


def numbers(config: Config, head_dim: str = "head_dim") -> Numbers:
    """Of a config that `uniform` made; `head_dim` is the key of one head's width."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return Numbers(
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get(head_dim) or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        context_length=reach(config),
        tied=bool(config.get("tie_word_embeddings")),
    )


def of_blocks(
    config: Config, n: Numbers, blocks: tuple[Block, ...], outside: dict[str, Shape], **more: Any
) -> Architecture:
    return Architecture(kind=str(config["model_type"]), **asdict(n), blocks=blocks, outside=outside, **more)


# what a norm of the queries or the keys spans, by (heads, head_dim): shapes by what follows the norm's name
NORM_OVER: dict[str, Callable[[int, int], dict[str, Shape]]] = {
    "a head": lambda heads, dim: {"": (dim,)},
    "the projection": lambda heads, dim: {"": (heads * dim,)},
    "heads and their width": lambda heads, dim: {"": (heads, dim)},
    "each head": lambda heads, dim: {f".norms.{index}": (dim,) for index in range(heads)},
}


@dataclass(frozen=True, slots=True)
class QueryKeyNorm:
    over: Literal["a head", "the projection", "heads and their width", "each head"]
    when: Flag = True
    names: tuple[str, str] = ("q_norm", "k_norm")
    bias: bool = False


def query_key_norms(block: Block, norm: QueryKeyNorm, n: Numbers) -> None:
    for name, heads in zip(norm.names, (n.heads, n.kv_heads), strict=True):
        for suffix, shape in NORM_OVER[norm.over](heads, n.head_dim).items():
            block.norm(f"self_attn.{name}{suffix}", *shape, bias=norm.bias)


def attention(block: Block, family: "Family", config: Config, n: Numbers, index: int) -> None:
    queries, keys = n.heads * n.head_dim, n.kv_heads * n.head_dim
    bias = decided(family.qkv_bias, config)
    if family.fused_qkv:
        block.linear(f"self_attn.{family.fused_qkv}", queries + 2 * keys, n.hidden, bias=bias)
    else:
        for name, out in (("q", queries), ("k", keys), ("v", keys)):
            block.linear(f"self_attn.{name}_proj", out, n.hidden, bias=bias)
    block.linear(f"self_attn.{family.out}", n.hidden, queries, bias=decided(family.out_bias, config))
    if family.query_key_norm and decided(family.query_key_norm.when, config):
        query_key_norms(block, family.query_key_norm, n)


def gated(block: Block, at: str, hidden: int, width: int, *, bias: bool = False) -> None:
    """The gated MLP of llama (Shazeer 2020, GLU Variants Improve Transformer)."""
    for name in ("gate_proj", "up_proj"):
        block.linear(f"{at}.{name}", width, hidden, bias=bias)
    block.linear(f"{at}.down_proj", hidden, width, bias=bias)


def two(up: str, down: str, times: int = 1) -> Callable[..., None]:
    """An MLP of two matrices; `times` 2: the gated one with gate and up in one matrix."""

    def build(block: Block, at: str, hidden: int, width: int, *, bias: bool = False) -> None:
        block.linear(f"{at}.{up}", times * width, hidden, bias=bias)
        block.linear(f"{at}.{down}", hidden, width, bias=bias)

    return build


ungated = two("up_proj", "down_proj")
gated_in_one = two("gate_up_proj", "down_proj", times=2)


def dense(block: Block, family: "Family", config: Config, n: Numbers, index: int) -> None:
    """The same MLP in every layer."""
    family.mlp(block, family.mlp_at, n.hidden, int(config[family.width]), bias=decided(family.mlp_bias, config))


Part = Callable[[Block, "Family", Config, Numbers, int], None]  # of one layer, by its index


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where decoders of the llama kind differ; the defaults are llama's.

    `defaults` are the values of the config class where config.json leaves a key out, as far as a shape hangs on them.
    """

    attention: Part = attention
    qkv_bias: Flag = "attention_bias"
    fused_qkv: str | None = None  # the name of the one projection
    out: str = "o_proj"
    out_bias: Flag = "attention_bias"
    query_key_norm: QueryKeyNorm | None = None
    head_dim: str = "head_dim"  # the key of one head's width
    feed_forward: Part = dense
    mlp: Callable[..., None] = gated
    mlp_at: str = "mlp"
    mlp_bias: Flag = False
    width: str = "intermediate_size"  # the key of a dense layer's width
    norms: Callable[[Config], tuple[str, ...]] = lambda config: ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    last_norm: str | None = "model.norm"
    head_bias: Flag = False
    active_expert_share: Callable[[Config], float] = lambda config: 1.0
    fixed: tuple[str, ...] = ()  # the ends of the names of what its class never trains
    aliases: dict[str, str] = field(default_factory=dict)
    defaults: Config = field(default_factory=dict)


def layer(family: Family, config: Config, n: Numbers, index: int) -> Block:
    block = Block()
    family.attention(block, family, config, n, index)
    family.feed_forward(block, family, config, n, index)
    for name in family.norms(config):
        block.norm(name, n.hidden, bias=family.norm_bias)
    return block


def outside(family: Family, config: Config, n: Numbers) -> dict[str, Shape]:
    block = Block()
    block.tensors["model.embed_tokens.weight"] = (n.vocabulary, n.hidden)
    if family.last_norm:
        block.norm(family.last_norm, n.hidden, bias=family.norm_bias)
    if not n.tied:
        block.tensors["lm_head.weight"] = (n.vocabulary, n.hidden)
    if decided(family.head_bias, config):
        block.tensors["lm_head.bias"] = (n.vocabulary,)
    return block.tensors


def decoder(family: Family) -> Callable[[Config], Architecture]:
    def build(config: Config) -> Architecture:
        config = uniform(config, family.defaults, ALIASES | family.aliases)
        n = numbers(config, family.head_dim)
        blocks = tuple(layer(family, config, n, index) for index in range(int(config["num_hidden_layers"])))
        share = family.active_expert_share(config)
        made = of_blocks(config, n, blocks, outside(family, config, n), active_expert_share=share)
        return replace(made, fixed=tuple(name for name, _ in made.tensors() if name.endswith(family.fixed)))

    return build


def norms(*names: str) -> Callable[[Config], tuple[str, ...]]:
    return lambda config: names


NO_BIAS: dict[str, Any] = {"qkv_bias": False, "out_bias": False}
USE_BIAS: dict[str, Any] = {"qkv_bias": "use_bias", "out_bias": "use_bias", "mlp_bias": "use_bias"}
AFTER = norms("post_attention_layernorm", "post_feedforward_layernorm")
AROUND = norms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
TIED = {"tie_word_embeddings": True}
GEMMA = {"head_dim": 256, **TIED}

ROWS: dict[str, Family] = {
    "llama": Family(mlp_bias="mlp_bias"),
    "mistral": Family(**NO_BIAS),
    "ministral": Family(**NO_BIAS),
    "ministral3": Family(**NO_BIAS, defaults={"head_dim": 128}),
    "qwen2": Family(qkv_bias=True, out_bias=False),
    "qwen3": Family(query_key_norm=QueryKeyNorm("a head"), defaults={"head_dim": 128}),
    "gemma": Family(defaults=GEMMA),
    "gemma2": Family(norms=AROUND, defaults=GEMMA),
    "gemma3_text": Family(norms=AROUND, query_key_norm=QueryKeyNorm("a head"), defaults=GEMMA),
    "granite": Family(mlp_bias="mlp_bias"),
    "cohere": Family(
        norms=norms("input_layernorm"),
        query_key_norm=QueryKeyNorm("heads and their width", when="use_qk_norm"),
        defaults=TIED,
    ),
    "cohere2": Family(norms=norms("input_layernorm"), defaults=TIED),
    "olmo": Family(norms=norms(), last_norm=None),
    "olmo2": Family(norms=AFTER, query_key_norm=QueryKeyNorm("the projection")),
    "olmo3": Family(norms=AFTER, query_key_norm=QueryKeyNorm("the projection")),
    "smollm3": Family(mlp_bias="mlp_bias", defaults=TIED),
    "seed_oss": Family(
        out_bias="attention_out_bias", mlp_bias="mlp_bias", defaults={"attention_bias": True, "head_dim": 128}
    ),
    "exaone": Family(mlp_bias="mlp_bias"),
    "exaone4": Family(**NO_BIAS, norms=AFTER, query_key_norm=QueryKeyNorm("a head")),
    "ernie4_5": Family(**USE_BIAS, defaults={"head_dim": 128, **TIED}),
    "internlm3": Family(
        mlp_bias="mlp_bias",
        aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
        defaults={"head_dim": 128},
    ),
    "hunyuan_v1_dense": Family(query_key_norm=QueryKeyNorm("a head", names=("query_layernorm", "key_layernorm"))),
    "nemotron": Family(mlp=ungated, mlp_bias="mlp_bias", norm_bias=True),
    "arcee": Family(mlp=ungated, mlp_bias="mlp_bias"),
    "helium": Family(out_bias=False, mlp_bias="mlp_bias", defaults={"head_dim": 128}),
    "glm": Family(out_bias=False, mlp=gated_in_one, defaults={"attention_bias": True, "head_dim": 128}),
    "glm4": Family(
        out_bias=False,
        mlp=gated_in_one,
        norms=norms("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "phi": Family(
        qkv_bias=True,
        out="dense",
        out_bias=True,
        query_key_norm=QueryKeyNorm("a head", "qk_layernorm", ("q_layernorm", "k_layernorm"), bias=True),
        mlp=two("fc1", "fc2"),
        mlp_bias=True,
        norms=norms("input_layernorm"),
        norm_bias=True,
        last_norm="model.final_layernorm",
        head_bias=True,
    ),
    "phi3": Family(**NO_BIAS, fused_qkv="qkv_proj", mlp=gated_in_one),
    "starcoder2": Family(**USE_BIAS, mlp=two("c_fc", "c_proj"), norm_bias=True, defaults={"use_bias": True, **TIED}),
    "stablelm": Family(
        qkv_bias="use_qkv_bias",
        out_bias=False,
        query_key_norm=QueryKeyNorm("each head", "qk_layernorm", ("q_layernorm", "k_layernorm")),
        norms=lambda config: (
            "input_layernorm",
            *(() if config.get("use_parallel_residual") else ("post_attention_layernorm",)),
        ),
        norm_bias=True,
    ),
    # their code comes with the weights
    "baichuan": Family(**NO_BIAS, fused_qkv="W_pack"),
    "internlm": Family(qkv_bias="bias", out_bias="bias", defaults={"bias": True}),
    "minicpm": Family(defaults=TIED),
}

FAMILIES = {kind: decoder(family) for kind, family in ROWS.items()}
