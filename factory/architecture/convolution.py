"""Decoders with short gated convolutions instead of attention in most layers (Liquid AI 2025, LFM2)."""

from factory.architecture.dense import TIED, Config, Family, Numbers, QueryKeyNorm, attention, decoder, norms
from factory.architecture.types import Block


def has_attention(config: Config, index: int) -> bool:
    """By `layer_types`, else by `full_attn_idxs`, else everywhere."""
    kinds, listed = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is not None:
        return kinds[index] != "conv"
    return listed is None or index in listed


def attention_or_convolution(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    if has_attention(config, index):
        attention(block, family, config, n, index)
        return
    bias = bool(config["conv_bias"])
    block.tensors["conv.conv.weight"] = (n.hidden, 1, int(config["conv_L_cache"]))
    if bias:
        block.tensors["conv.conv.bias"] = (n.hidden,)
    block.linear("conv.in_proj", 3 * n.hidden, n.hidden, bias=bias)
    block.linear("conv.out_proj", n.hidden, n.hidden, bias=bias)


def adjusted(config: Config, width: int) -> int:
    """Two thirds of the width that config.json gives, times a factor, rounded up to a multiple."""
    if not config["block_auto_adjust_ff_dim"]:
        return width
    multiple, width = int(config["block_multiple_of"]), int(config["block_ffn_dim_multiplier"] * int(2 * width / 3))
    return multiple * ((width + multiple - 1) // multiple)


def feed_forward(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    width = adjusted(config, n.intermediate)
    for name in ("w1", "w3"):
        block.linear(f"feed_forward.{name}", width, n.hidden)
    block.linear("feed_forward.w2", n.hidden, width)


ROWS = {
    "lfm2": Family(
        attention=attention_or_convolution,
        qkv_bias=False,
        out="out_proj",
        out_bias=False,
        query_key_norm=QueryKeyNorm("a head", names=("q_layernorm", "k_layernorm")),
        feed_forward=feed_forward,
        norms=norms("operator_norm", "ffn_norm"),
        last_norm="model.embedding_norm",
        aliases={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
        defaults={
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
            **TIED,
        },
    ),
}

FAMILIES = {kind: decoder(family) for kind, family in ROWS.items()}
