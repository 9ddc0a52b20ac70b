"""Decoders with names of their own: the GPT kind with one matrix for queries, keys and values, and code of the hub.

Each family is a layout: where its tensors are, its block, and what stands outside the blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from factory.architecture.dense import TIED, Config, Numbers, numbers, of_blocks, uniform
from factory.architecture.types import Architecture, Block

Layers = Callable[[Block, Config, Numbers], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`more` are the parameters beside the embedding, the blocks and the head.

    `width` is the key of the MLP's width; 4 hidden where its value is null, or where there is no such key.
    """

    layers_at: str
    embedding: str
    head: str = "lm_head"
    head_bias: bool = False
    block: Layers
    more: Layers
    width: str | None = "intermediate_size"
    defaults: Config = field(default_factory=dict)
    nested: tuple[str, ...] = ()  # keys whose value has more of the numbers
    kv_heads: Callable[[Config, Numbers], int] = lambda config, n: n.kv_heads
    active_expert_share: Callable[[Config], float] = lambda config: 1.0


def laid_out(layout: Layout) -> Callable[[Config], Architecture]:
    def build(config: Config) -> Architecture:
        inner = {name: value for key in layout.nested for name, value in (config.get(key) or {}).items()}
        config = uniform(config, layout.defaults | inner)
        width = (config[layout.width] if layout.width else None) or 4 * int(config["hidden_size"])
        n = numbers(config | {"intermediate_size": width})
        n = replace(n, kv_heads=layout.kv_heads(config, n))
        block, outside = Block(), Block()
        layout.block(block, config, n)
        embedding(outside, layout, config, n)
        layout.more(outside, config, n)
        names = {"layers_at": layout.layers_at, "embedding": layout.embedding, "head": layout.head}
        share = layout.active_expert_share(config)
        return of_blocks(
            config, n, (block,) * int(config["num_hidden_layers"]), outside.tensors, **names, active_expert_share=share
        )

    return build


def embedding(outside: Block, layout: Layout, config: Config, n: Numbers) -> None:
    """And the head: OPT's are narrower than its layers in one size."""
    width = int(config.get("word_embed_proj_dim") or n.hidden)
    outside.tensors[f"{layout.embedding}.weight"] = (n.vocabulary, width)
    if not n.tied:
        outside.tensors[f"{layout.head}.weight"] = (n.vocabulary, width)
    if layout.head_bias:
        outside.tensors[f"{layout.head}.bias"] = (n.vocabulary,)


def norms(*names: str, bias: bool = True) -> Layers:
    def build(block: Block, config: Config, n: Numbers) -> None:
        for name in names:
            block.norm(name, n.hidden, bias=bias)

    return build


def gpt(qkv: str, out: str, up: str, down: str, *names: str, transposed: bool = False) -> Layers:
    """Attention and MLP of two matrices each, all with biases, and norms; as many keys as queries."""

    def build(block: Block, config: Config, n: Numbers) -> None:
        bias = bool(config.get("attention_bias", True))
        block.linear(qkv, n.hidden + 2 * n.kv_heads * n.head_dim, n.hidden, bias=bias, transposed=transposed)
        block.linear(out, n.hidden, n.hidden, bias=bias, transposed=transposed)
        block.linear(up, n.intermediate, n.hidden, bias=True, transposed=transposed)
        block.linear(down, n.hidden, n.intermediate, bias=True, transposed=transposed)
        norms(*names)(block, config, n)

    return build


GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")
NEOX = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
BLOOM = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
NORMS = ("input_layernorm", "post_attention_layernorm")


def positions_and_norm(outside: Block, config: Config, n: Numbers) -> None:
    outside.tensors["transformer.wpe.weight"] = (int(config["max_position_embeddings"]), n.hidden)
    outside.norm("transformer.ln_f", n.hidden, bias=True)


def gpt_neo(block: Block, config: Config, n: Numbers) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        block.linear(f"attn.attention.{name}", n.hidden, n.hidden)
    block.linear("attn.attention.out_proj", n.hidden, n.hidden, bias=True)
    block.linear("mlp.c_fc", n.intermediate, n.hidden, bias=True)
    block.linear("mlp.c_proj", n.hidden, n.intermediate, bias=True)
    norms("ln_1", "ln_2")(block, config, n)


def gptj(block: Block, config: Config, n: Numbers) -> None:
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block.linear(f"attn.{name}", n.hidden, n.hidden)
    block.linear("mlp.fc_in", n.intermediate, n.hidden, bias=True)
    block.linear("mlp.fc_out", n.hidden, n.intermediate, bias=True)
    block.norm("ln_1", n.hidden, bias=True)


def opt_norm(block: Block, name: str, config: Config, n: Numbers) -> None:
    if config["layer_norm_elementwise_affine"]:
        block.norm(name, n.hidden, bias=True)


def opt(block: Block, config: Config, n: Numbers) -> None:
    bias = bool(config["enable_bias"])
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block.linear(f"self_attn.{name}", n.hidden, n.hidden, bias=bias)
    block.linear("fc1", n.intermediate, n.hidden, bias=bias)
    block.linear("fc2", n.hidden, n.intermediate, bias=bias)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        opt_norm(block, name, config, n)


def opt_outside(outside: Block, config: Config, n: Numbers) -> None:
    """Positions are counted from 2 on (Zhang et al. 2022, OPT's code), and a narrow embedding is projected."""
    positions, width = int(config["max_position_embeddings"]), int(config.get("word_embed_proj_dim") or n.hidden)
    outside.tensors["model.decoder.embed_positions.weight"] = (positions + 2, n.hidden)
    if width != n.hidden:
        outside.tensors["model.decoder.project_in.weight"] = (n.hidden, width)
        outside.tensors["model.decoder.project_out.weight"] = (width, n.hidden)
    if config["do_layer_norm_before"] and not config.get("_remove_final_layer_norm"):
        opt_norm(outside, "model.decoder.final_layer_norm", config, n)


def falcon_norms(config: Config) -> tuple[str, ...]:
    if not config["parallel_attn"]:
        return NORMS
    several = config.get("num_ln_in_parallel_attn")
    if several is None and config["new_decoder_architecture"]:
        several = 2
    return ("ln_attn", "ln_mlp") if several == 2 else ("input_layernorm",)


def falcon_kv_heads(config: Config, n: Numbers) -> int:
    """Return as many as there are in the fused matrix and in the cache: one where all queries share it."""
    shared = config["multi_query"] and not config["new_decoder_architecture"]
    return 1 if shared else int(config.get("num_kv_heads") or n.heads)


def falcon(block: Block, config: Config, n: Numbers) -> None:
    bias, keys = bool(config["bias"]), falcon_kv_heads(config, n) * n.head_dim
    block.linear("self_attention.query_key_value", n.hidden + 2 * keys, n.hidden, bias=bias)
    block.linear("self_attention.dense", n.hidden, n.hidden, bias=bias)
    block.linear("mlp.dense_h_to_4h", n.intermediate, n.hidden, bias=bias)
    block.linear("mlp.dense_4h_to_h", n.hidden, n.intermediate, bias=bias)
    norms(*falcon_norms(config))(block, config, n)


def mpt(block: Block, config: Config, n: Numbers) -> None:
    """It has no biases, whatever `no_bias` says."""
    block.linear("attn.Wqkv", 3 * n.hidden, n.hidden)
    block.linear("attn.out_proj", n.hidden, n.hidden)
    block.linear("ffn.up_proj", n.intermediate, n.hidden)
    block.linear("ffn.down_proj", n.hidden, n.intermediate)
    norms("norm_1", "norm_2", bias=False)(block, config, n)


def dbrx(block: Block, config: Config, n: Numbers) -> None:
    """The experts' matrices lie under each other in one, (experts · width, hidden)."""
    experts = int(config["moe_num_experts"])
    block.linear("norm_attn_norm.attn.Wqkv", n.hidden + 2 * n.kv_heads * n.head_dim, n.hidden)
    block.linear("norm_attn_norm.attn.out_proj", n.hidden, n.hidden)
    block.tensors["ffn.router.layer.weight"] = (experts, n.hidden)
    for name in ("w1", "v1", "w2"):
        block.stacked(f"ffn.experts.mlp.{name}", (experts * n.intermediate, n.hidden))
    norms("norm_attn_norm.norm_1", "norm_attn_norm.norm_2", bias=False)(block, config, n)


def chatglm(block: Block, config: Config, n: Numbers) -> None:
    """ChatGLM2, ChatGLM3 and the first GLM-4: gated, the gate in one matrix."""
    bias = bool(config["add_bias_linear"])
    qkv = (n.heads + 2 * n.kv_heads) * n.head_dim
    block.linear("self_attention.query_key_value", qkv, n.hidden, bias=bias or bool(config["add_qkv_bias"]))
    block.linear("self_attention.dense", n.hidden, n.heads * n.head_dim, bias=bias)
    block.linear("mlp.dense_h_to_4h", 2 * n.intermediate, n.hidden, bias=bias)
    block.linear("mlp.dense_4h_to_h", n.hidden, n.intermediate, bias=bias)
    norms(*NORMS, bias=not config["rmsnorm"])(block, config, n)


def chatglm_outside(outside: Block, config: Config, n: Numbers) -> None:
    if config["post_layer_norm"]:
        outside.norm("transformer.encoder.final_layernorm", n.hidden, bias=not config["rmsnorm"])


def chatglm_kv_heads(config: Config, n: Numbers) -> int:
    return int(config["multi_query_group_num"]) if config["multi_query_attention"] else n.heads


def internlm2(block: Block, config: Config, n: Numbers) -> None:
    bias = bool(config["bias"])
    block.linear("attention.wqkv", (n.heads + 2 * n.kv_heads) * n.head_dim, n.hidden, bias=bias)
    block.linear("attention.wo", n.hidden, n.heads * n.head_dim, bias=bias)
    for name in ("w1", "w3"):
        block.linear(f"feed_forward.{name}", n.intermediate, n.hidden)
    block.linear("feed_forward.w2", n.hidden, n.intermediate)
    norms("attention_norm", "ffn_norm", bias=False)(block, config, n)


LAYOUTS: dict[str, Layout] = {
    "gpt2": Layout(
        layers_at="transformer.h",
        embedding="transformer.wte",
        block=gpt(*GPT2, transposed=True),
        more=positions_and_norm,
        width="n_inner",
        defaults={"n_inner": None, **TIED},
    ),
    "gpt_bigcode": Layout(
        layers_at="transformer.h",
        embedding="transformer.wte",
        block=gpt(*GPT2),
        more=positions_and_norm,
        width="n_inner",
        defaults={"n_inner": None, "multi_query": True, **TIED},
        kv_heads=lambda config, n: 1 if config["multi_query"] else n.heads,
    ),
    "gpt_neox": Layout(
        layers_at="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        block=gpt(*NEOX, *NORMS),
        more=norms("gpt_neox.final_layer_norm"),
    ),
    "gpt_neo": Layout(
        layers_at="transformer.h",
        embedding="transformer.wte",
        block=gpt_neo,
        more=positions_and_norm,
        defaults={"intermediate_size": None, **TIED},
    ),
    "gptj": Layout(
        layers_at="transformer.h",
        embedding="transformer.wte",
        head_bias=True,
        block=gptj,
        more=norms("transformer.ln_f"),
        width="n_inner",
        defaults={"n_inner": None},
    ),
    "opt": Layout(
        layers_at="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        block=opt,
        more=opt_outside,
        width="ffn_dim",
        defaults={
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            **TIED,
        },
    ),
    "bloom": Layout(
        layers_at="transformer.h",
        embedding="transformer.word_embeddings",
        block=gpt(*BLOOM, *NORMS),
        more=norms("transformer.word_embeddings_layernorm", "transformer.ln_f"),
        width=None,
        defaults=TIED,
    ),
    "falcon": Layout(
        layers_at="transformer.h",
        embedding="transformer.word_embeddings",
        block=falcon,
        more=norms("transformer.ln_f"),
        width="ffn_hidden_size",
        defaults={
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "bias": False,
            "max_position_embeddings": 2048,
            "ffn_hidden_size": None,
            **TIED,
        },
        kv_heads=falcon_kv_heads,
    ),
    "mpt": Layout(
        layers_at="transformer.blocks",
        embedding="transformer.wte",
        block=mpt,
        more=norms("transformer.norm_f", bias=False),
        width=None,
        defaults=TIED,
    ),
    "dbrx": Layout(
        layers_at="transformer.blocks",
        embedding="transformer.wte",
        block=dbrx,
        more=norms("transformer.norm_f", bias=False),
        width="ffn_hidden_size",
        nested=("attn_config", "ffn_config"),
        defaults={"kv_n_heads": 1, "ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1},
        kv_heads=lambda config, n: int(config["kv_n_heads"]),
        active_expert_share=lambda config: int(config["moe_top_k"]) / int(config["moe_num_experts"]),
    ),
    # their code comes with the weights
    "chatglm": Layout(
        layers_at="transformer.encoder.layers",
        embedding="transformer.embedding.word_embeddings",
        head="transformer.output_layer",
        block=chatglm,
        more=chatglm_outside,
        width="ffn_hidden_size",
        defaults={
            "add_bias_linear": False,
            "add_qkv_bias": False,
            "rmsnorm": True,
            "post_layer_norm": True,
            "multi_query_attention": False,
        },
        kv_heads=chatglm_kv_heads,
    ),
    "internlm2": Layout(
        layers_at="model.layers",
        embedding="model.tok_embeddings",
        head="output",
        block=internlm2,
        more=norms("model.norm", bias=False),
        defaults={"bias": True},
    ),
}

FAMILIES = {kind: laid_out(layout) for kind, layout in LAYOUTS.items()}
