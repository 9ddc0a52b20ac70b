"""Decoders with experts: as `dense.py`, with a router and the stacked matrices of all experts in some layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from factory.architecture.dense import (
    NO_BIAS,
    TIED,
    USE_BIAS,
    Config,
    Family,
    Numbers,
    QueryKeyNorm,
    attention,
    decided,
    decoder,
    dense,
    gated,
    two,
)
from factory.architecture.latent import DEEPSEEK_V2, latent_attention
from factory.architecture.types import Block

Chosen = Callable[[Config, int], bool]  # whether the layer of this index has experts


def always(config: Config, index: int) -> bool:
    return True


def stepped(config: Config, index: int) -> bool:
    """Every `decoder_sparse_step`-th layer, but those of `mlp_only_layers`."""
    listed = index in (config.get("mlp_only_layers") or ())
    return not listed and int(config["num_experts"]) > 0 and (index + 1) % int(config["decoder_sparse_step"]) == 0


def after_the_first(config: Config, index: int) -> bool:
    return index >= int(config["first_k_dense_replace"])


def within(config: Config, index: int) -> bool:
    """Every `moe_layer_interval`-th layer from the first to the last index, where -1 is the last layer's."""
    last = int(config["moe_layer_end_index"])
    last = int(config["num_hidden_layers"]) - 1 if last == -1 else last
    inside = int(config["moe_layer_start_index"]) <= index <= last
    return inside and (index + 1) % int(config["moe_layer_interval"]) == 0


def interleaved(config: Config, index: int) -> bool:
    """The layers of `moe_layers`, else every `interleave_moe_layer_step`-th."""
    listed = config.get("moe_layers")
    return (index + 1) % int(config["interleave_moe_layer_step"]) == 0 if listed is None else index in listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How a family's experts differ; the values are the keys of config.json. A `Part` of a family's layers.

    `shared` is the name of the MLP that every token passes through, `shared_width` gives its width (0: there is none).
    """

    count: str = "num_experts"
    per_token: str = "num_experts_per_tok"  # noqa: S105  a number of experts
    width: str = "moe_intermediate_size"
    at: Chosen = always
    router: str = "gate"
    router_bias: bool = False
    transposed: bool = False  # (in, out) of each expert
    biases: bool = False
    shared: str = "mlp.shared_experts"
    shared_mlp: Callable[..., None] = gated
    shared_width: Callable[[Config], int] = lambda config: 0
    shared_gate: bool = False
    correction: str | None = None  # of the router's scores, where it is a parameter (kept fixed) and no buffer

    def __call__(self, block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
        if self.at(config, index):
            self.build(block, family, config, n)
        else:
            dense(block, family, config, n, index)

    def build(self, block: Block, family: Family, config: Config, n: Numbers) -> None:
        at, count, width = family.mlp_at, int(config[self.count]), int(config[self.width])
        block.tensors[f"{at}.{self.router}.weight"] = (count, n.hidden)
        if self.router_bias:
            block.tensors[f"{at}.{self.router}.bias"] = (count,)
        if self.correction:
            block.tensors[f"{at}.{self.correction}"] = (1, count)
        self.stack(block, f"{at}.experts", count, width, n.hidden)
        shared = self.shared_width(config)
        if shared:
            self.shared_mlp(block, self.shared, n.hidden, shared, bias=decided(family.mlp_bias, config))
        if self.shared_gate:
            block.tensors[f"{self.shared}_gate.weight"] = (1, n.hidden)

    def stack(self, block: Block, at: str, count: int, width: int, hidden: int) -> None:
        for name, out, inputs in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
            block.stacked(f"{at}.{name}", (count, inputs, out) if self.transposed else (count, out, inputs))
            if self.biases:
                block.tensors[f"{at}.{name}_bias"] = (count, out)

    def share(self, config: Config) -> float:
        return int(config[self.per_token]) / int(config[self.count])


def sparse(experts: Experts, **family: Any) -> Family:
    fixed = (f".{experts.correction}",) if experts.correction else ()
    return Family(feed_forward=experts, active_expert_share=experts.share, fixed=fixed, **family)


def times_shared(count: str) -> Callable[[Config], int]:
    """As many shared experts in one MLP; a config that leaves the count out has none."""
    return lambda config: int(config["moe_intermediate_size"]) * int(config.get(count) or 0)


def as_wide_as(key: str) -> Callable[[Config], int]:
    return lambda config: int(config[key])


def attention_with_sinks(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    """A learned logit per head that takes attention away from the tokens."""
    attention(block, family, config, n, index)
    block.tensors["self_attn.sinks"] = (n.heads,)


def is_linear(config: Config, index: int) -> bool:
    """Whether the layer has the linear attention: all but every `full_attention_interval`-th."""
    listed = config.get("layer_types")
    if listed is None:
        return (index + 1) % int(config["full_attention_interval"]) != 0
    return listed[index] == "linear_attention"


def linear_or_gated_attention(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    """The gated delta rule (Yang et al. 2024, Gated Delta Networks), or attention with a gate beside its queries."""
    if is_linear(config, index):
        delta_rule(block, config, n)
        return
    attention(block, family, config, n, index)
    queries = 2 * n.heads * n.head_dim
    block.linear("self_attn.q_proj", queries, n.hidden, bias=decided(family.qkv_bias, config))


def delta_rule(block: Block, config: Config, n: Numbers) -> None:
    heads, width = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    keys, values = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"]), heads * width
    block.tensors["linear_attn.dt_bias"] = block.tensors["linear_attn.A_log"] = (heads,)
    block.tensors["linear_attn.conv1d.weight"] = (2 * keys + values, 1, int(config["linear_conv_kernel_dim"]))
    block.linear("linear_attn.in_proj_qkvz", 2 * keys + 2 * values, n.hidden)
    block.linear("linear_attn.in_proj_ba", 2 * heads, n.hidden)
    block.norm("linear_attn.norm", width)
    block.linear("linear_attn.out_proj", n.hidden, values)


ROUTED = {
    "count": "n_routed_experts",
    "at": after_the_first,
    "shared_width": times_shared("n_shared_experts"),
}

STEPPED_WITH_SHARED = Experts(
    at=stepped,
    shared="mlp.shared_expert",
    shared_width=as_wide_as("shared_expert_intermediate_size"),
    shared_gate=True,
)

ROWS: dict[str, Family] = {
    "mixtral": sparse(Experts(count="num_local_experts", width="intermediate_size"), **NO_BIAS),
    "qwen2_moe": sparse(
        STEPPED_WITH_SHARED,
        qkv_bias="qkv_bias",
        out_bias=False,
        defaults={"qkv_bias": True, "decoder_sparse_step": 1},
    ),
    "qwen3_moe": sparse(
        Experts(at=stepped),
        query_key_norm=QueryKeyNorm("a head"),
        aliases={"num_local_experts": "num_experts"},
        defaults={"decoder_sparse_step": 1},
    ),
    "qwen3_next": sparse(
        STEPPED_WITH_SHARED,
        attention=linear_or_gated_attention,
        query_key_norm=QueryKeyNorm("a head"),
        defaults={
            "head_dim": 256,
            "decoder_sparse_step": 1,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
        },
    ),
    "olmoe": sparse(Experts(width="intermediate_size"), query_key_norm=QueryKeyNorm("the projection")),
    "gpt_oss": sparse(
        Experts(
            count="num_local_experts",
            width="intermediate_size",
            router="router",
            router_bias=True,
            transposed=True,
            biases=True,
        ),
        attention=attention_with_sinks,
        defaults={"attention_bias": True, "head_dim": 64},
    ),
    "deepseek_v2": sparse(
        Experts(**ROUTED),
        attention=latent_attention,
        head_dim="qk_rope_head_dim",
        mlp_bias="mlp_bias",
        defaults={**DEEPSEEK_V2, "first_k_dense_replace": 0, "n_shared_experts": 2},
    ),
    "deepseek_v3": sparse(
        Experts(**ROUTED),
        attention=latent_attention,
        head_dim="qk_rope_head_dim",
        defaults={**DEEPSEEK_V2, "first_k_dense_replace": 3, "n_shared_experts": 1},
    ),
    "glm4_moe": sparse(
        Experts(**ROUTED),
        out_bias=False,
        query_key_norm=QueryKeyNorm("a head", when="use_qk_norm"),
        defaults={"first_k_dense_replace": 1, "n_shared_experts": 1},
    ),
    "granitemoe": sparse(
        Experts(count="num_local_experts", width="intermediate_size", router="router"), mlp_at="block_sparse_moe"
    ),
    "granitemoeshared": sparse(
        Experts(
            count="num_local_experts",
            width="intermediate_size",
            router="router",
            shared="shared_mlp",
            shared_mlp=two("input_linear", "output_linear", times=2),
            shared_width=lambda config: int(config.get("shared_intermediate_size") or 0),
        ),
        mlp_at="block_sparse_moe",
    ),
    "phimoe": sparse(
        Experts(count="num_local_experts", width="intermediate_size", router="router"),
        norm_bias=True,
        head_bias="lm_head_bias",
    ),
    "llama4_text": sparse(
        Experts(
            count="num_local_experts",
            width="intermediate_size",
            at=interleaved,
            router="router",
            transposed=True,
            shared="feed_forward.shared_expert",
            shared_width=as_wide_as("intermediate_size"),
        ),
        mlp_at="feed_forward",
        width="intermediate_size_mlp",
        defaults={"head_dim": 128, "interleave_moe_layer_step": 1},
    ),
    "ernie4_5_moe": sparse(
        Experts(
            count="moe_num_experts",
            per_token="moe_k",  # noqa: S106  a number of experts
            at=within,
            shared_width=times_shared("moe_num_shared_experts"),
            correction="gate.moe_statics.e_score_correction_bias",
        ),
        **USE_BIAS,
        head_bias="use_bias",
        defaults={
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "moe_num_shared_experts": 2,
            **TIED,
        },
    ),
    "hunyuan_v1_moe": sparse(
        Experts(
            per_token="moe_topk",  # noqa: S106  a number of experts
            width="intermediate_size",
            router="gate.wg",
            shared="mlp.shared_mlp",
            shared_width=as_wide_as("intermediate_size"),
        ),
        query_key_norm=QueryKeyNorm("a head", names=("query_layernorm", "key_layernorm")),
    ),
}

# the words of config.json for the experts' number and for how many of them a token passes through
EXPERT_WORDS = (
    *sorted(
        {(row.count, row.per_token) for row in (r.feed_forward for r in ROWS.values()) if isinstance(row, Experts)}
    ),
    ("moe_num_experts", "moe_top_k"),
)

FAMILIES = {kind: decoder(family) for kind, family in ROWS.items()}
