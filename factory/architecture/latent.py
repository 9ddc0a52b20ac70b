"""Attention over compressed keys and values (DeepSeek-AI 2024, DeepSeek-V2, section 2.1), and its dense families."""

from factory.architecture.dense import TIED, Config, Family, Numbers, decided, decoder
from factory.architecture.types import Block

DEEPSEEK_V2 = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
MINICPM3 = {
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": None,  # hidden / heads
}


def latent_attention(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    """Queries are compressed too, unless `q_lora_rank` is null. One rotary key of width r serves all heads."""
    bias = decided(family.qkv_bias, config)
    rank, values = int(config["kv_lora_rank"]), int(config["v_head_dim"] or n.hidden // n.heads)
    content, rotary = int(config["qk_nope_head_dim"]), int(config["qk_rope_head_dim"])
    queries = n.heads * (content + rotary)
    if config["q_lora_rank"] is None:
        block.linear("self_attn.q_proj", queries, n.hidden)
    else:
        compressed = int(config["q_lora_rank"])
        block.linear("self_attn.q_a_proj", compressed, n.hidden, bias=bias)
        block.norm("self_attn.q_a_layernorm", compressed)
        block.linear("self_attn.q_b_proj", queries, compressed)
    block.linear("self_attn.kv_a_proj_with_mqa", rank + rotary, n.hidden, bias=bias)
    block.norm("self_attn.kv_a_layernorm", rank)
    block.linear("self_attn.kv_b_proj", n.heads * (content + values), rank)
    block.linear("self_attn.o_proj", n.hidden, n.heads * values, bias=decided(family.out_bias, config))


ROWS = {
    "minicpm3": Family(
        attention=latent_attention, head_dim="qk_rope_head_dim", mlp_bias="mlp_bias", defaults={**MINICPM3, **TIED}
    ),
}

FAMILIES = {kind: decoder(family) for kind, family in ROWS.items()}
