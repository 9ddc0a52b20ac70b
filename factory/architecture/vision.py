"""Language models that see or hear: a decoder of the other tables under a prefix, a tower, what joins the two."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from factory.architecture import dense, experts
from factory.architecture.dense import (
    TIED,
    Config,
    Family,
    Numbers,
    QueryKeyNorm,
    attention,
    decoder,
    gated,
    uniform,
)
from factory.architecture.towers import TOWERS, WORDS, Tower
from factory.architecture.types import Architecture, Block, Shape, image_layers
from factory.config.refusal import did_you_mean, refuse


def self_or_cross_attention(block: Block, family: Family, config: Config, n: Numbers, index: int) -> None:
    """Some layers of Llama 3.2 Vision attend to the image alone, behind gates."""
    if index not in config["cross_attention_layers"]:
        attention(block, family, config, n, index)
        return
    own = Block()
    attention(own, replace(family, query_key_norm=QueryKeyNorm("a head")), config, n, index)
    block.linears.update(renamed(own.linears, "self_attn.", "cross_attn."))
    block.tensors.update(renamed(own.tensors, "self_attn.", "cross_attn."))
    block.tensors["cross_attn_attn_gate"] = block.tensors["cross_attn_mlp_gate"] = (1,)


def renamed(shapes: dict[str, Shape], old: str, new: str) -> dict[str, Shape]:
    """Those that start with `old` start with `new` instead."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: s for name, s in shapes.items()}


TEXTS: dict[str, Callable[[Config], Architecture]] = {
    **dense.FAMILIES,
    **experts.FAMILIES,
    "qwen2_vl_text": decoder(dense.ROWS["qwen2"]),
    "qwen2_5_vl_text": decoder(dense.ROWS["qwen2"]),
    "qwen3_vl_text": decoder(dense.ROWS["qwen3"]),
    "mllama_text_model": decoder(
        Family(
            **dense.NO_BIAS,
            attention=self_or_cross_attention,
            defaults={"cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38)},
        )
    ),
}


def text_sizes(hidden: int, width: int, layers: int, heads: int, keys: int, vocabulary: int, context: int) -> Config:
    return {
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }


# what the class of a text_config says where it leaves a number out: published files rely on it
TEXT_DEFAULTS: dict[str, Config] = {
    "llama": text_sizes(4096, 11008, 32, 32, 0, 32000, 2048),  # 0: as many keys as heads
    "mistral": text_sizes(4096, 14336, 32, 32, 8, 32000, 131072),
    "qwen2": text_sizes(4096, 22016, 32, 32, 32, 151936, 32768),
    "gemma": text_sizes(3072, 24576, 28, 16, 16, 256000, 8192),
    "gemma2": text_sizes(2304, 9216, 26, 8, 4, 256000, 8192),
    "gemma3_text": text_sizes(2304, 9216, 26, 8, 4, 262208, 131072),
    "qwen2_vl_text": text_sizes(8192, 29568, 80, 64, 8, 152064, 32768),
    "qwen2_5_vl_text": text_sizes(8192, 29568, 80, 64, 8, 152064, 32768),
    "qwen3_vl_text": text_sizes(4096, 22016, 32, 32, 32, 151936, 128000),
    "mllama_text_model": text_sizes(4096, 14336, 40, 32, 8, 128256, 131072),
    "llama4_text": text_sizes(5120, 8192, 48, 40, 8, 202048, 131072)
    | {"intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1},
}

Projector = Callable[[Block, Config, Architecture, Config], None]  # of config, the language model, the tower's config


def features(config: Config) -> int:
    """From how many layers of the tower the image's features are taken, side by side."""
    chosen = config["vision_feature_layer"]
    return 1 if isinstance(chosen, int) else len(chosen)


def two_linears(block: Block, hidden: int, inputs: int, *, bias: bool) -> None:
    block.linear("multi_modal_projector.linear_1", hidden, inputs, bias=bias)
    block.linear("multi_modal_projector.linear_2", hidden, hidden, bias=bias)


def llava(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    inputs = int(vision["hidden_size"]) * features(config)
    two_linears(block, language.hidden, inputs, bias=bool(config["multimodal_projector_bias"]))


def llava_next(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    llava(block, config, language, vision)
    block.tensors["image_newline"] = (language.hidden,)


def mistral3(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    llava(block, config, language, vision)
    hidden = int(vision["hidden_size"])
    block.norm("multi_modal_projector.norm", hidden)
    merged = hidden * int(config["spatial_merge_size"]) ** 2
    block.linear("multi_modal_projector.patch_merger.merging_layer", hidden, merged)


def paligemma(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    out = int(config["projection_dim"])
    block.linear("multi_modal_projector.linear", out, int(vision["hidden_size"]), bias=True)


def gemma3(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    hidden = int(vision["hidden_size"])
    block.tensors["multi_modal_projector.mm_input_projection_weight"] = (hidden, language.hidden)
    block.norm("multi_modal_projector.mm_soft_emb_norm", hidden)


def idefics2(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    """A gated projection, then a resampler to a fixed number of latents (Alayrac et al. 2022, Flamingo)."""
    at = "connector.modality_projection"
    for name in ("gate_proj", "up_proj"):
        block.linear(f"{at}.{name}", language.intermediate, int(vision["hidden_size"]))
    block.linear(f"{at}.down_proj", language.hidden, language.intermediate)
    resampler = PERCEIVER | (config.get("perceiver_config") or {})
    hidden = language.hidden  # the resampler's own word on it is overridden
    block.tensors["connector.perceiver_resampler.latents"] = (int(resampler["resampler_n_latents"]), hidden)
    block.norm("connector.perceiver_resampler.norm", hidden)
    for index in range(int(resampler["resampler_depth"])):
        resampler_layer(block, f"connector.perceiver_resampler.layers.{index}", resampler, hidden)


PERCEIVER = {
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "num_key_value_heads": 4,
}


def resampler_layer(block: Block, at: str, config: Config, hidden: int) -> None:
    width = int(config["resampler_head_dim"])
    queries, keys = int(config["resampler_n_heads"]) * width, int(config["num_key_value_heads"]) * width
    for name, out, inputs in (("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden), ("o", hidden, queries)):
        block.linear(f"{at}.self_attn.{name}_proj", out, inputs)
    gated(block, f"{at}.mlp", hidden, 4 * hidden)
    for name in ("input_latents_norm", "input_context_norm", "post_attention_layernorm"):
        block.norm(f"{at}.{name}", hidden)


def idefics3(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    inputs = int(vision["hidden_size"]) * int(config["scale_factor"]) ** 2
    block.linear("connector.modality_projection.proj", language.hidden, inputs)


def internvl(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    inputs = int(vision["hidden_size"]) * int(1 / float(config["downsample_ratio"])) ** 2
    block.norm("multi_modal_projector.layer_norm", inputs, bias=True)
    two_linears(block, language.hidden, inputs, bias=True)


def mllama(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    block.linear("multi_modal_projector", language.hidden, int(vision["vision_output_dim"]), bias=True)


def llama4(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    block.linear("multi_modal_projector.linear_1", language.hidden, int(vision["vision_output_dim"]))


def qwen2_audio(block: Block, config: Config, language: Architecture, audio: Config) -> None:
    block.linear("multi_modal_projector.linear", language.hidden, int(audio["hidden_size"]), bias=True)


def nothing(block: Block, config: Config, language: Architecture, vision: Config) -> None:
    """The tower itself merges patches to the language model's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multimodal:
    """`text` and `tower` are the kinds of the two parts where config.json does not say, or where it cannot choose."""

    text: str
    text_at: str = "language_model"
    tower: str
    tower_at: str = "vision_tower"
    tower_by: str = "vision_config"  # config.json's key of the tower's numbers
    above: str = "model."  # before the names of all parts
    head: str = "lm_head"
    any_text: bool = False
    any_tower: bool = False
    flat: bool = False  # older files have the language model's numbers on the top level
    tied_by_text: bool = False  # the text_config's word on it is the one that is read
    ties: bool = True  # whether its class ties the head to the embedding where it is told to
    extra_embeddings: int = 0
    fixed: tuple[str, ...] = ()  # the ends of the names of what its class never trains, of the parts beside the text
    normed: bool = False  # whether its features of the tower's last layer are those after the norm
    counted: bool = False  # the factor of its linear positions is in its context already
    join: Projector
    defaults: Config = field(default_factory=dict)


def seeing(model: Multimodal) -> Callable[[Config], Architecture]:
    def build(config: Config) -> Architecture:
        config = {**model.defaults, **config}
        language = language_model(model, config)
        tower, said = tower_of(model, config[model.tower_by])
        parts = Block()
        tower(parts, model.tower_at, said)
        model.join(parts, config, language, said)
        return joined(model, config, language, parts, unread(model, config, parts))

    return build


def unread(model: Multimodal, config: Config, parts: Block) -> frozenset[str]:
    """What of the tower the image's features do not follow from.

    What pools them or stands for masked patches; where they are taken of certain layers, those after the last of these,
    and the norm after all. InternVL alone takes its last layer's through that norm.
    """
    at, chosen = f"{model.tower_at}.", config.get("vision_feature_layer")
    found = {name for name in parts.tensors if name.startswith((f"{at}head.", f"{at}embeddings.mask_token"))}
    if chosen is None or (chosen == -1 and model.normed):
        return frozenset(found)
    of_layers = re.compile(rf"{at}\w+\.layers?\.(\d+)\.")
    layers = {name: int(layer[1]) for name in parts.tensors if (layer := of_layers.match(name))}
    states = max(layers.values(), default=0) + 2  # before the first layer and after each
    last = max(each % states for each in ([chosen] if isinstance(chosen, int) else chosen))
    found |= {name for name, layer in layers.items() if layer >= last}
    found |= {name for name in parts.tensors if name.startswith((f"{at}post_layernorm.", f"{at}layernorm."))}
    return frozenset(found)


def language_model(model: Multimodal, config: Config) -> Architecture:
    text = config if model.flat and config.get("text_config") is None else config["text_config"]
    kind = kind_of(text, "text_config", TEXTS, model.text) if model.any_text else model.text
    tied = model.ties and (text if model.tied_by_text else config).get("tie_word_embeddings", False)
    said = {**TEXT_DEFAULTS.get(kind, {}), **text, "tie_word_embeddings": tied, "model_type": kind}
    language = TEXTS[kind](said)
    return replace(language, context_length=int(said["max_position_embeddings"])) if model.counted else language


def kind_of(part: Config, name: str, known: Mapping[str, Any], default: str) -> str:
    kind = str(part.get("model_type", default))
    if kind not in known:
        raise refuse(
            "unknown-architecture",
            f"{name}.model_type={kind}",
            "there is no such architecture",
            because="parameters and memory could not be estimated, nor the model be built",
            fix=f"{did_you_mean(kind, known)}use a newer transformers, or another model",
        )
    return kind


def tower_of(model: Multimodal, config: Config) -> tuple[Tower, Config]:
    kind = kind_of(config, model.tower_by, TOWERS, model.tower) if model.any_tower else model.tower
    tower, defaults = TOWERS[kind]
    return tower, uniform(config, defaults, WORDS.get(kind, {}))


def joined(
    model: Multimodal, config: Config, language: Architecture, parts: Block, unread: frozenset[str]
) -> Architecture:
    at = f"{model.above}{model.text_at}"
    outside = renamed(renamed(language.outside, "model.", f"{at}."), "lm_head.", f"{model.head}.")
    rows, hidden = outside[f"{at}.embed_tokens.weight"]
    outside[f"{at}.embed_tokens.weight"] = (rows + model.extra_embeddings, hidden)
    fixed = renamed(dict.fromkeys(language.fixed, ()), "model.", f"{at}.")
    beside = {f"{model.above}{name}": shape for name, shape in parts.tensors.items()}
    names = {name.partition(".")[0] for name in parts.tensors}
    return replace(
        language,
        kind=str(config["model_type"]),
        layers_at=f"{at}.layers",
        embedding=f"{at}.embed_tokens",
        head=model.head,
        outside=outside | beside,
        parts={name: f"{model.above}{name}." for name in names} | image_layers(f"{at}.layers", language.blocks),
        part_linears={f"{model.above}{name}": shape for name, shape in parts.linears.items()},
        fixed=(
            *(f"{model.above}{name}" for name in parts.tensors if name in unread or name.endswith(model.fixed)),
            *fixed,
        ),
    )


FEATURES = {"vision_feature_layer": -2, "multimodal_projector_bias": True}
ANY: dict[str, Any] = {"any_text": True, "any_tower": True}
IDEFICS: dict[str, Any] = {"any_text": True, "text_at": "text_model", "tower_at": "vision_model"}

MODELS: dict[str, Multimodal] = {
    "llava": Multimodal(text="llama", tower="clip_vision_model", join=llava, **ANY, defaults=FEATURES),
    "llava_next": Multimodal(text="llama", tower="clip_vision_model", join=llava_next, **ANY, defaults=FEATURES),
    "llava_onevision": Multimodal(text="qwen2", tower="siglip_vision_model", join=llava_next, **ANY, defaults=FEATURES),
    "qwen2_vl": Multimodal(text="qwen2_vl_text", tower="qwen2_vl_vision", tower_at="visual", flat=True, join=nothing),
    "qwen2_5_vl": Multimodal(
        text="qwen2_5_vl_text", tower="qwen2_5_vl_vision", tower_at="visual", flat=True, join=nothing
    ),
    "qwen3_vl": Multimodal(text="qwen3_vl_text", tower="qwen3_vl_vision", tower_at="visual", join=nothing),
    "paligemma": Multimodal(
        text="gemma", tower="siglip_vision_model", join=paligemma, **ANY, defaults={"projection_dim": 2048, **TIED}
    ),
    "idefics2": Multimodal(text="mistral", tower="idefics2_vision", join=idefics2, **IDEFICS),
    "idefics3": Multimodal(
        text="llama", tower="idefics3_vision", join=idefics3, defaults={"scale_factor": 2}, **IDEFICS
    ),
    "smolvlm": Multimodal(text="llama", tower="smolvlm_vision", join=idefics3, defaults={"scale_factor": 2}, **IDEFICS),
    "gemma3": Multimodal(
        text="gemma3_text", tower="siglip_vision_model", join=gemma3, any_tower=True, counted=True, defaults=TIED
    ),
    "mllama": Multimodal(
        text="mllama_text_model",
        tower="mllama_vision_model",
        tower_at="vision_model",
        extra_embeddings=8,  # the image's token and what was kept free beside it
        join=mllama,
    ),
    "mistral3": Multimodal(
        text="mistral",
        tower="pixtral",
        join=mistral3,
        **ANY,
        defaults={"vision_feature_layer": -1, "multimodal_projector_bias": False, "spatial_merge_size": 2, **TIED},
    ),
    "internvl": Multimodal(
        text="qwen2",
        tower="internvl_vision",
        join=internvl,
        any_text=True,
        normed=True,
        defaults={"downsample_ratio": 0.5, "vision_feature_layer": -1, **TIED},
    ),
    "llama4": Multimodal(
        text="llama4_text",
        text_at="language_model.model",
        tower="llama4_vision_model",
        tower_at="vision_model",
        above="",
        head="language_model.lm_head",
        tied_by_text=True,
        join=llama4,
    ),
    "qwen2_audio": Multimodal(
        text="qwen2",
        tower="qwen2_audio_encoder",
        tower_at="audio_tower",
        tower_by="audio_config",
        fixed=(".embed_positions.weight",),
        join=qwen2_audio,
        ties=False,
        **ANY,
    ),
}

FAMILIES = {kind: seeing(model) for kind, model in MODELS.items()}
