"""What decoders are made of, family by family: their norms' kind and order, and what their layers' names mean.

Of a kind that is not in the table, llama's anatomy is taken.
"""

from dataclasses import dataclass, replace
from typing import Literal

from factory.architecture import Block, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """`order`: of norms and branches. `activation_keeps`: the activation's operations, an input kept of each."""

    norm: Literal["rms", "rms_wide", "layer"] = "rms"
    order: Literal["before", "around", "after", "parallel", "parallel_two"] = "before"
    activation_keeps: int = 1
    rotary: bool = True
    copies_heads: bool = False  # queries, keys and values are cut from one product, and copied
    caps_scores: bool = False  # cap tanh(scores / cap)
    masks: bool = False  # gives torch a mask of its own, with which there is no fused kernel on a CPU


_GEMMA = Anatomy(norm="rms_wide", order="around")
ANATOMIES: dict[str, Anatomy] = {
    "gemma": Anatomy(norm="rms_wide"),
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


def roles(block: Block) -> dict[str, str]:
    """What each of a layer's linear layers is, by its name's end: role to name."""
    found: dict[str, str] = {}
    for name in block.linears:
        for role, ends in _LINEAR.items():
            if role not in found and any(f".{name}".endswith(f".{end}") for end in ends):
                found[role] = name
                break
    return found


def is_plain(block: Block) -> bool:
    """Whether its attention has queries, keys and values, in one product or three, and one product after them."""
    found = roles(block)
    return "out" in found and ("qkv" in found or {"q", "k", "v"} <= found.keys())


def norms(block: Block) -> list[dict[str, Shape]]:
    """A layer's norms over the hidden states, each with its tensors."""
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in block.tensors.items():
        module = name.rpartition(".")[0]
        if module in _NORM_ORDER:
            found.setdefault(module, {})[name] = shape
    return [found[name] for name in _NORM_ORDER if name in found]
