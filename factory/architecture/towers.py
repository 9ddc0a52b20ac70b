"""What sees or hears in a model: the towers' tensors, by the model_type of their own config, and their defaults.

A tower is a function of the block to fill, the prefix of its names, and its config with the class's defaults.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from factory.architecture.dense import Config, gated, two
from factory.architecture.types import Block

Tower = Callable[[Block, str, Config], None]

ungated = two("fc1", "fc2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """How the layers of the encoders differ; `square` are the projections of hidden width to hidden width."""

    at: str
    square: tuple[str, ...]
    qkv: str | None = None  # the name of the one projection
    bias: bool = True
    unbiased: tuple[str, ...] = ()  # those of `square` that have none even so
    mlp: Callable[..., None] = ungated
    mlp_at: str | None = "mlp"
    mlp_bias: bool = True
    norms: tuple[str, str]
    norm_bias: bool = True
    vectors: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()


def projections(at: str, out: str) -> tuple[str, ...]:
    return (f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj", f"{at}.{out}")


def encoder(block: Block, at: str, layer: Layer, layers: int, hidden: int, width: int) -> None:
    for index in range(layers):
        here = f"{at}.{layer.at}.{index}"
        if layer.qkv:
            block.linear(f"{here}.{layer.qkv}", 3 * hidden, hidden, bias=layer.bias)
        for name in layer.square:
            block.linear(f"{here}.{name}", hidden, hidden, bias=layer.bias and name not in layer.unbiased)
        layer.mlp(block, f"{here}.{layer.mlp_at}" if layer.mlp_at else here, hidden, width, bias=layer.mlp_bias)
        for name in layer.norms:
            block.norm(f"{here}.{name}", hidden, bias=layer.norm_bias)
        block.tensors.update({f"{here}.{name}": (hidden,) for name in layer.vectors})
        block.tensors.update({f"{here}.{name}": (1,) for name in layer.gates})


def sized(block: Block, at: str, layer: Layer, config: Config) -> None:
    """An encoder whose numbers have the usual names."""
    layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    encoder(block, at, layer, layers, hidden, int(config["intermediate_size"]))


def side(value: Any) -> int:
    """Of a square that is given by one side or by both."""
    return int(value[0] if isinstance(value, list | tuple) else value)


def patches(config: Config) -> int:
    return (side(config["image_size"]) // side(config["patch_size"])) ** 2


def convolution(block: Block, name: str, out: int, *inside: int, bias: bool = True) -> None:
    block.norm(name, out, *inside)
    if bias:
        block.tensors[f"{name}.bias"] = (out,)


def patch_embedding(block: Block, name: str, config: Config, *, bias: bool = False) -> None:
    """A convolution with a stride of its own size."""
    patch = side(config["patch_size"])
    convolution(block, name, int(config["hidden_size"]), int(config["num_channels"]), patch, patch, bias=bias)


CLIP_LAYER = Layer(
    at="encoder.layers", square=projections("self_attn", "out_proj"), norms=("layer_norm1", "layer_norm2")
)
PIXTRAL_LAYER = Layer(
    at="transformer.layers",
    square=projections("attention", "o_proj"),
    bias=False,
    mlp=gated,
    mlp_at="feed_forward",
    mlp_bias=False,
    norms=("attention_norm", "ffn_norm"),
    norm_bias=False,
)
LLAMA4_LAYER = Layer(
    at="model.layers",
    square=projections("self_attn", "o_proj"),
    norms=("input_layernorm", "post_attention_layernorm"),
)
MLLAMA: dict[str, Any] = {
    "square": projections("self_attn", "o_proj"),
    "bias": False,
    "norms": ("input_layernorm", "post_attention_layernorm"),
}
MLLAMA_LAYER = Layer(at="transformer.layers", **MLLAMA)
MLLAMA_GLOBAL_LAYER = Layer(at="global_transformer.layers", gates=("gate_attn", "gate_ffn"), **MLLAMA)
QWEN: dict[str, Any] = {"at": "blocks", "qkv": "attn.qkv", "square": ("attn.proj",), "norms": ("norm1", "norm2")}
QWEN2_LAYER = Layer(**QWEN)
QWEN2_5_LAYER = Layer(**QWEN, mlp=gated, norm_bias=False)
QWEN3_LAYER = Layer(**QWEN, mlp=two("linear_fc1", "linear_fc2"))
WHISPER_LAYER = Layer(
    at="layers",
    square=projections("self_attn", "out_proj"),
    unbiased=("self_attn.k_proj",),
    mlp_at=None,
    norms=("self_attn_layer_norm", "final_layer_norm"),
)


def clip(block: Block, at: str, config: Config) -> None:
    hidden = int(config["hidden_size"])
    block.tensors[f"{at}.embeddings.class_embedding"] = (hidden,)
    patch_embedding(block, f"{at}.embeddings.patch_embedding", config)
    block.norm(f"{at}.embeddings.position_embedding", patches(config) + 1, hidden)
    sized(block, at, CLIP_LAYER, config)
    for name in ("pre_layrnorm", "post_layernorm"):
        block.norm(f"{at}.{name}", hidden, bias=True)


def siglip(block: Block, at: str, config: Config) -> None:
    """Also that of Idefics 2 and 3, which has no pooling head."""
    hidden = int(config["hidden_size"])
    patch_embedding(block, f"{at}.embeddings.patch_embedding", config, bias=True)
    block.norm(f"{at}.embeddings.position_embedding", patches(config), hidden)
    sized(block, at, CLIP_LAYER, config)
    block.norm(f"{at}.post_layernorm", hidden, bias=True)
    if config["vision_use_head"]:
        pooling_head(block, f"{at}.head", hidden, int(config["intermediate_size"]))


def pooling_head(block: Block, at: str, hidden: int, width: int) -> None:
    block.tensors[f"{at}.probe"] = (1, 1, hidden)
    block.tensors[f"{at}.attention.in_proj_weight"] = (3 * hidden, hidden)
    block.tensors[f"{at}.attention.in_proj_bias"] = (3 * hidden,)
    block.linear(f"{at}.attention.out_proj", hidden, hidden, bias=True)
    block.norm(f"{at}.layernorm", hidden, bias=True)
    ungated(block, f"{at}.mlp", hidden, width, bias=True)


def pixtral(block: Block, at: str, config: Config) -> None:
    patch_embedding(block, f"{at}.patch_conv", config)
    block.norm(f"{at}.ln_pre", int(config["hidden_size"]))
    sized(block, at, PIXTRAL_LAYER, config)


def qwen_patches(block: Block, at: str, config: Config, hidden: int) -> None:
    """A convolution over frames too."""
    patch = side(config["patch_size"])
    channels, frames = int(config["in_channels"]), side(config["temporal_patch_size"])
    block.norm(f"{at}.patch_embed.proj", hidden, channels, frames, patch, patch)


def qwen_merger(block: Block, at: str, merged: int, out: int, *names: str) -> None:
    block.linear(f"{at}.{names[0]}", merged, merged, bias=True)
    block.linear(f"{at}.{names[1]}", out, merged, bias=True)


def qwen2(block: Block, at: str, config: Config) -> None:
    """Of Qwen2-VL: `hidden_size` is the language model's width."""
    width, merged = int(config["embed_dim"]), int(config["embed_dim"]) * int(config["spatial_merge_size"]) ** 2
    qwen_patches(block, at, config, width)
    encoder(block, at, QWEN2_LAYER, int(config["depth"]), width, int(width * config["mlp_ratio"]))
    block.norm(f"{at}.merger.ln_q", width, bias=True)
    qwen_merger(block, f"{at}.merger.mlp", merged, int(config["hidden_size"]), "0", "2")


def qwen2_5(block: Block, at: str, config: Config) -> None:
    width, merged = int(config["hidden_size"]), int(config["hidden_size"]) * int(config["spatial_merge_size"]) ** 2
    qwen_patches(block, at, config, width)
    encoder(block, at, QWEN2_5_LAYER, int(config["depth"]), width, int(config["intermediate_size"]))
    block.norm(f"{at}.merger.ln_q", width)
    qwen_merger(block, f"{at}.merger.mlp", merged, int(config["out_hidden_size"]), "0", "2")


def qwen3(block: Block, at: str, config: Config) -> None:
    """Of Qwen3-VL: features of some layers too are merged and given to the language model's first layers."""
    width, merged = int(config["hidden_size"]), int(config["hidden_size"]) * int(config["spatial_merge_size"]) ** 2
    qwen_patches(block, at, config, width)
    block.tensors[f"{at}.patch_embed.proj.bias"] = (width,)
    block.norm(f"{at}.pos_embed", int(config["num_position_embeddings"]), width)
    encoder(block, at, QWEN3_LAYER, int(config["depth"]), width, int(config["intermediate_size"]))
    deep = [f"{at}.deepstack_merger_list.{index}" for index in range(len(config["deepstack_visual_indexes"]))]
    for name, size in ((f"{at}.merger", width), *((name, merged) for name in deep)):
        block.norm(f"{name}.norm", size, bias=True)
        qwen_merger(block, name, merged, int(config["out_hidden_size"]), "linear_fc1", "linear_fc2")


def internvl(block: Block, at: str, config: Config) -> None:
    hidden = int(config["hidden_size"])
    block.tensors[f"{at}.embeddings.cls_token"] = (1, 1, hidden)
    if config["use_mask_token"]:
        block.tensors[f"{at}.embeddings.mask_token"] = (1, 1, hidden)
    if config["use_absolute_position_embeddings"]:
        block.tensors[f"{at}.embeddings.position_embeddings"] = (1, patches(config) + 1, hidden)
    patch_embedding(block, f"{at}.embeddings.patch_embeddings.projection", config, bias=True)
    sized(block, at, internvl_layer(config), config)
    for index in range(int(config["num_hidden_layers"])):
        block.tensors[f"{at}.encoder.layer.{index}.attention.projection_layer.bias"] = (hidden,)
    if not config["use_mean_pooling"]:
        block.norm(f"{at}.layernorm", hidden, bias=True)


def internvl_layer(config: Config) -> Layer:
    """RMS norms have no biases; those of queries and keys are always RMS norms."""
    queries = ("attention.q_norm.weight", "attention.k_norm.weight") if config["use_qk_norm"] else ()
    return Layer(
        at="encoder.layer",
        square=projections("attention", "projection_layer"),
        bias=bool(config["attention_bias"]),
        norms=("layernorm_before", "layernorm_after"),
        norm_bias=config["norm_type"] == "layer_norm",
        vectors=("lambda_1", "lambda_2", *queries),
    )


def llama4(block: Block, at: str, config: Config) -> None:
    hidden, out = int(config["hidden_size"]), int(config["projector_output_dim"])
    block.tensors[f"{at}.class_embedding"] = (hidden,)
    block.tensors[f"{at}.positional_embedding_vlm"] = (patches(config) + 1, hidden)
    pixels = int(config["num_channels"]) * side(config["patch_size"]) ** 2
    block.linear(f"{at}.patch_embedding.linear", hidden, pixels)
    for name in ("layernorm_pre", "layernorm_post"):
        block.norm(f"{at}.{name}", hidden, bias=True)
    sized(block, at, LLAMA4_LAYER, config)
    block.linear(f"{at}.vision_adapter.mlp.fc1", int(config["projector_input_dim"]), int(config["intermediate_size"]))
    block.linear(f"{at}.vision_adapter.mlp.fc2", out, out)


def mllama(block: Block, at: str, config: Config) -> None:
    """Tiles of several aspect ratios, each with an embedding; the id 0 is no ratio."""
    hidden, tiles = int(config["hidden_size"]), int(config["max_num_tiles"])
    ratios, places = len(config["supported_aspect_ratios"]) + 1, patches(config) + 1
    block.tensors[f"{at}.class_embedding"] = (hidden,)
    patch_embedding(block, f"{at}.patch_embedding", config)
    block.tensors[f"{at}.gated_positional_embedding.embedding"] = (places, hidden)
    for name, rows in (
        ("gated_positional_embedding.tile_embedding", places * tiles * hidden),
        ("pre_tile_positional_embedding.embedding", tiles * hidden),
        ("post_tile_positional_embedding.embedding", tiles * hidden),
    ):
        block.norm(f"{at}.{name}", ratios, rows)
        block.tensors[f"{at}.{name.partition('.')[0]}.gate"] = (1,)
    for name in ("layernorm_pre", "layernorm_post"):
        block.norm(f"{at}.{name}", hidden, bias=True)
    sized(block, at, MLLAMA_LAYER, config)
    sized(block, at, MLLAMA_GLOBAL_LAYER, config | {"num_hidden_layers": config["num_global_layers"]})


def whisper(block: Block, at: str, config: Config) -> None:
    """The encoder of Whisper (Radford et al. 2022), which reads a spectrogram; its positions never train."""
    hidden = int(config["hidden_size"])
    convolution(block, f"{at}.conv1", hidden, int(config["num_mel_bins"]), 3)
    convolution(block, f"{at}.conv2", hidden, hidden, 3)
    block.norm(f"{at}.embed_positions", int(config["max_source_positions"]), hidden)
    sized(block, at, WHISPER_LAYER, config)
    block.norm(f"{at}.layer_norm", hidden, bias=True)


SQUARES = {"num_channels": 3, "image_size": 224}
IDEFICS = {"intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32, "vision_use_head": False, **SQUARES}
QWEN_PATCHES = {"in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}

# by the model_type of its config: the tower, and what its class says where config.json leaves a number out
TOWERS: dict[str, tuple[Tower, Config]] = {
    "clip_vision_model": (
        clip,
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 32, **SQUARES},
    ),
    "siglip_vision_model": (siglip, IDEFICS | {"hidden_size": 768, "patch_size": 16, "vision_use_head": True}),
    "idefics2_vision": (siglip, IDEFICS | {"hidden_size": 768}),
    "idefics3_vision": (siglip, IDEFICS | {"hidden_size": 1152}),
    "smolvlm_vision": (siglip, IDEFICS | {"hidden_size": 1152}),
    "pixtral": (
        pixtral,
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_channels": 3, "patch_size": 16},
    ),
    "qwen2_vl_vision": (
        qwen2,
        {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, **QWEN_PATCHES},
    ),
    "qwen2_5_vl_vision": (
        qwen2_5,
        {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584, **QWEN_PATCHES},
    ),
    "qwen3_vl_vision": (
        qwen3,
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 3584,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": (8, 16, 24),
            **QWEN_PATCHES,
            "patch_size": 16,
        },
    ),
    "internvl_vision": (
        internvl,
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "attention_bias": False,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "use_mask_token": False,
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
        },
    ),
    "llama4_vision_model": (
        llama4,
        {
            "hidden_size": 768,
            "intermediate_size": 5632,
            "num_hidden_layers": 34,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "vision_output_dim": 7680,
            "projector_input_dim": 4096,
            "projector_output_dim": 4096,
        },
    ),
    "mllama_vision_model": (
        mllama,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "max_num_tiles": 4,
            "vision_output_dim": 7680,
            "supported_aspect_ratios": ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
        },
    ),
    "qwen2_audio_encoder": (
        whisper,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
        },
    ),
}
# config.json's words for the numbers above, where a class has its own
WORDS: dict[str, dict[str, str]] = {
    "qwen2_audio_encoder": {
        "d_model": "hidden_size",
        "encoder_ffn_dim": "intermediate_size",
        "encoder_layers": "num_hidden_layers",
    },
}
