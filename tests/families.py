"""Tiny configs of every architecture family, in variants of the flags that its class reads."""

import copy
from typing import Any

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # within the tiny vocabulary
NARROW = {"head_dim": 16}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
BIASED, UNBIASED = {"attention_bias": True}, {"attention_bias": False}
MLP_BIASED = {"mlp_bias": True}
ABSENT = object()  # a key of SMALL that this case leaves out
USE_BIAS, NO_USE_BIAS = {"use_bias": True}, {"use_bias": False}

# by model_type, what is said beside SMALL: the least that is needed first
DENSE: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, TIED, BIASED, MLP_BIASED, NARROW],
    "mistral": [{}, BIASED | MLP_BIASED, NARROW],
    "ministral": [NARROW, NARROW | TIED],
    "ministral3": [{}, NARROW],
    "qwen2": [{}, UNBIASED | MLP_BIASED, TIED],
    "qwen3": [{}, NARROW, BIASED],
    "gemma": [{}, NARROW, BIASED, UNTIED],
    "gemma2": [{}, NARROW, BIASED, UNTIED],
    "gemma3_text": [{}, NARROW, BIASED, UNTIED],
    "granite": [{}, BIASED, MLP_BIASED, TIED],
    "cohere": [{}, BIASED, {"use_qk_norm": True}, UNTIED],
    "cohere2": [{}, BIASED, NARROW, UNTIED],
    "olmo": [{}, BIASED, {"clip_qkv": 8.0}, TIED],
    "olmo2": [{}, BIASED, NARROW, TIED],
    "olmo3": [{}, BIASED, NARROW, TIED],
    "smollm3": [{}, BIASED, MLP_BIASED, UNTIED],
    "seed_oss": [{}, UNBIASED, {"attention_out_bias": True}, MLP_BIASED, NARROW, TIED],
    "exaone": [{}, BIASED, MLP_BIASED, TIED, {"num_hidden_layers": ABSENT, "num_layers": 3}],
    "exaone4": [{}, BIASED, NARROW, TIED],
    "ernie4_5": [{}, USE_BIAS, NARROW, UNTIED],
    "internlm3": [{}, {"qkv_bias": True, "bias": True}, BIASED | MLP_BIASED, NARROW, TIED],
    "hunyuan_v1_dense": [NARROW, NARROW | BIASED, NARROW | TIED],
    "nemotron": [{}, BIASED, MLP_BIASED, NARROW, TIED],
    "arcee": [{}, BIASED, MLP_BIASED, NARROW, TIED],
    "helium": [{"head_dim": 8}, {"head_dim": 8} | BIASED, {"head_dim": 8} | MLP_BIASED, {"head_dim": 8} | TIED],
    "glm": [{}, UNBIASED, NARROW, TIED],
    "glm4": [{}, UNBIASED, NARROW, TIED],
    "phi": [{}, {"qk_layernorm": True}, TIED],
    "phi3": [{}, BIASED, TIED],
    "starcoder2": [{}, NO_USE_BIAS, UNTIED],
    "lfm2": [
        {"full_attn_idxs": [1]},
        {"layer_types": ["full_attention", "conv"], "conv_bias": True, "conv_L_cache": 4} | UNTIED,
        {"block_auto_adjust_ff_dim": False},
        {"block_ffn_dim_multiplier": 1.5, "block_multiple_of": 16},
        {"intermediate_size": ABSENT, "block_ff_dim": 600, "tie_embedding": False},
    ],
    "stablelm": [{}, {"use_qkv_bias": True}, {"qk_layernorm": True}, {"use_parallel_residual": True}, TIED],
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS_OF_QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED_OF_QWEN = EXPERTS_OF_QWEN | {"shared_expert_intermediate_size": 40}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_hidden_layers": 4}
RANKS = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
PLAIN_QUERIES = {"q_lora_rank": None}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "num_hidden_layers": 4}
LLAMA4 = LOCAL | {"intermediate_size_mlp": 40, "num_hidden_layers": 4}
HUNYUAN = {"num_experts": 4, "moe_topk": 2, **NARROW}
EXPERTS: dict[str, list[dict[str, Any]]] = {
    "minicpm3": [{}, RANKS, RANKS | PLAIN_QUERIES, BIASED, MLP_BIASED, UNTIED],
    "mixtral": [LOCAL, LOCAL | NARROW, LOCAL | TIED],
    "qwen2_moe": [
        SHARED_OF_QWEN,
        SHARED_OF_QWEN | {"qkv_bias": False},
        SHARED_OF_QWEN | {"num_hidden_layers": 4, "decoder_sparse_step": 2},
        SHARED_OF_QWEN | {"mlp_only_layers": [0]} | TIED,
    ],
    "qwen3_moe": [
        EXPERTS_OF_QWEN,
        EXPERTS_OF_QWEN | NARROW | BIASED,
        EXPERTS_OF_QWEN | {"num_hidden_layers": 4, "decoder_sparse_step": 2},
        EXPERTS_OF_QWEN | {"mlp_only_layers": [1]} | TIED,
    ],
    "qwen3_next": [
        SHARED_OF_QWEN,
        SHARED_OF_QWEN | {"num_hidden_layers": 5} | BIASED,
        SHARED_OF_QWEN | NARROW | {"layer_types": ["full_attention", "linear_attention"], "mlp_only_layers": [1]},
        SHARED_OF_QWEN
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 6, "linear_num_value_heads": 4}
        | {"linear_value_head_dim": 10, "linear_conv_kernel_dim": 3},
    ],
    "olmoe": [EXPERTS_OF_QWEN, EXPERTS_OF_QWEN | BIASED, EXPERTS_OF_QWEN | TIED],
    "gpt_oss": [LOCAL, LOCAL | UNBIASED, LOCAL | NARROW | TIED],
    "deepseek_v2": [
        ROUTED,
        ROUTED | RANKS | PLAIN_QUERIES | {"first_k_dense_replace": 1},
        ROUTED | RANKS | {"n_shared_experts": 1} | BIASED | MLP_BIASED,
    ],
    "deepseek_v3": [
        ROUTED,
        ROUTED | RANKS | PLAIN_QUERIES | {"first_k_dense_replace": 1},
        ROUTED | RANKS | {"n_shared_experts": 2} | BIASED | TIED,
    ],
    "glm4_moe": [
        ROUTED,
        ROUTED | NARROW | {"use_qk_norm": True},
        ROUTED | BIASED | {"first_k_dense_replace": 0, "n_shared_experts": 2} | TIED,
    ],
    "granitemoe": [LOCAL, LOCAL | BIASED, LOCAL | TIED],
    "granitemoeshared": [LOCAL, LOCAL | {"shared_intermediate_size": 40}],
    "phimoe": [LOCAL, LOCAL | BIASED, LOCAL | {"lm_head_bias": True}],
    "llama4_text": [
        LLAMA4,
        LLAMA4 | {"interleave_moe_layer_step": 2} | NARROW,
        LLAMA4 | {"moe_layers": [3]} | BIASED | TIED,
    ],
    "ernie4_5_moe": [
        ERNIE,
        ERNIE | USE_BIAS | UNTIED,
        ERNIE | {"moe_layer_interval": 2, "moe_layer_start_index": 0},
        ERNIE | {"moe_layer_end_index": 2, "moe_num_shared_experts": 0},
    ],
    "hunyuan_v1_moe": [HUNYUAN, HUNYUAN | BIASED, HUNYUAN | TIED],
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
OPT = NEOX | {"intermediate_size": ABSENT, "ffn_dim": 48, "word_embed_proj_dim": 32}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}
FALCON = NEOX | {"intermediate_size": ABSENT}
SEVERAL_KEYS = {"multi_query": False}
PARALLEL = {"parallel_attn": False}
NEWER = {"new_decoder_architecture": True, "num_kv_heads": 2}
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": 96}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "vocab_size": 96}
NEO |= {"attention_types": [[["global", "local"], 1]]}
DBRX = MPT | {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}}
DBRX |= {"ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}}
LEGACY: dict[str, list[dict[str, Any]]] = {
    "gpt2": [GPT2, GPT2 | {"n_inner": 40}, GPT2 | UNTIED],
    "gpt_bigcode": [GPT2, GPT2 | {"n_inner": 40} | SEVERAL_KEYS, GPT2 | UNTIED],
    "gpt_neox": [NEOX, NEOX | UNBIASED, NEOX | TIED],
    "gpt_neo": [NEO, NEO | {"intermediate_size": 40} | UNTIED],
    "dbrx": [DBRX, DBRX | {"attn_config": {"rope_theta": 1e4}, "ffn_config": None}],
    "gptj": [GPT2 | {"rotary_dim": 4}, GPT2 | {"rotary_dim": 4, "n_inner": 40}, GPT2 | {"rotary_dim": 4} | TIED],
    "opt": [
        OPT,
        OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
        OPT | {"word_embed_proj_dim": ABSENT, "enable_bias": False} | UNTIED,
        OPT | {"layer_norm_elementwise_affine": False},
        OPT | {"_remove_final_layer_norm": True},
    ],
    "bloom": [BLOOM, BLOOM | UNTIED, BLOOM | {"hidden_size": ABSENT, "n_embed": 16}],
    "falcon": [
        FALCON,
        FALCON | {"bias": True, "alibi": True, "ffn_hidden_size": 40},
        FALCON | SEVERAL_KEYS | UNTIED,
        FALCON | PARALLEL | {"num_kv_heads": 2},
        FALCON | NEWER,
        FALCON | NEWER | {"num_ln_in_parallel_attn": 1},
        FALCON | NEWER | PARALLEL,
        FALCON | {"num_ln_in_parallel_attn": 2},
    ],
    "mpt": [MPT, MPT | {"no_bias": False}, MPT | UNTIED],
}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 2}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
HEADLESS = SIGLIP | {"vision_use_head": False}
PIXTRAL = CLIP | {"model_type": "pixtral"}
QWEN2_EYES = {"depth": 2, "embed_dim": 12, "hidden_size": 32, "num_heads": 2, "patch_size": 2}
QWEN2_5_EYES = {"depth": 2, "hidden_size": 12, "intermediate_size": 20, "out_hidden_size": 32, "num_heads": 2}
QWEN3_EYES = QWEN2_5_EYES | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1], "patch_size": 2}
INTERN_EYES = CLIP | {"model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [2, 2]}
TILES = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_global_layers": 1}
TILES |= {"attention_heads": 2, "image_size": 8, "patch_size": 2, "vision_output_dim": 24}
TILES |= {"intermediate_layers_indices": [0]}
LLAMA4_EYES = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA4_EYES |= {"image_size": 8, "patch_size": 2, "vision_output_dim": 24}
LLAMA4_EYES |= {"projector_input_dim": 24, "projector_output_dim": 24}
RESAMPLER = {"hidden_size": 32, "resampler_n_latents": 6, "resampler_depth": 2, "resampler_n_heads": 4}
RESAMPLER |= {"resampler_head_dim": 5, "num_key_value_heads": 2}


def seeing(text: dict[str, Any] | str, vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = SMALL | TOKENS | (text if isinstance(text, dict) else {"model_type": text})
    return {"text_config": text, "vision_config": vision, **more}


LLAMA = {"model_type": "llama", "max_position_embeddings": 64, "vocab_size": 96}  # all else is its class's default
VISION: dict[str, list[dict[str, Any]]] = {
    "llava": [
        seeing("llama", CLIP),
        seeing("mistral", PIXTRAL, multimodal_projector_bias=False),
        seeing("qwen2", SIGLIP, vision_feature_layer=[-2, -1], tie_word_embeddings=True),
        {"text_config": LLAMA, "vision_config": CLIP},
    ],
    "llava_next": [seeing("mistral", CLIP), seeing({}, CLIP, vision_feature_layer=[-1, 0])],
    "llava_onevision": [seeing("qwen2", HEADLESS), seeing({}, SIGLIP, tie_word_embeddings=True)],
    "qwen2_vl": [
        seeing({}, QWEN2_EYES),
        SMALL | TOKENS | {"vision_config": QWEN2_EYES | {"model_type": "qwen2_vl"}, "tie_word_embeddings": True},
        {"text_config": {"hidden_size": 8192}, "vision_config": {}},
    ],
    "qwen2_5_vl": [
        seeing({}, QWEN2_5_EYES),
        SMALL | TOKENS | {"vision_config": QWEN2_5_EYES, "tie_word_embeddings": True},
        {"text_config": {"hidden_size": 8192}, "vision_config": {}},
    ],
    "qwen3_vl": [
        seeing({}, QWEN3_EYES),
        seeing(NARROW | BIASED, QWEN3_EYES, tie_word_embeddings=True),
        {"text_config": {}, "vision_config": {}},
    ],
    "paligemma": [
        seeing("gemma", HEADLESS, projection_dim=32),
        seeing("gemma2", SIGLIP, projection_dim=32, tie_word_embeddings=False),
        seeing({}, HEADLESS),
    ],
    "idefics2": [
        seeing("mistral", CLIP | {"model_type": "idefics2"}, perceiver_config=RESAMPLER | {"model_type": "idefics2"}),
        seeing({}, CLIP, perceiver_config=RESAMPLER, tie_word_embeddings=True),
        seeing({}, {}),
    ],
    "idefics3": [seeing("llama", CLIP, scale_factor=3), seeing({}, {}, tie_word_embeddings=True)],
    "smolvlm": [seeing("llama", CLIP, scale_factor=3), seeing({}, {}, tie_word_embeddings=True)],
    "gemma3": [
        seeing("gemma3_text", HEADLESS, mm_tokens_per_image=4),
        seeing(NARROW, SIGLIP, mm_tokens_per_image=4, tie_word_embeddings=False),
        {"text_config": {}, "vision_config": HEADLESS, "mm_tokens_per_image": 4},
    ],
    "mllama": [
        seeing({"cross_attention_layers": [1]}, TILES),
        seeing(
            {"cross_attention_layers": []}, TILES | {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2]]}
        ),
        {"text_config": {}, "vision_config": {}},
    ],
    "mistral3": [
        seeing("mistral", PIXTRAL),
        seeing({}, PIXTRAL, multimodal_projector_bias=True, spatial_merge_size=3, tie_word_embeddings=False),
    ],
    "internvl": [
        seeing("qwen2", INTERN_EYES),
        seeing("llama", INTERN_EYES | {"attention_bias": True, "use_qk_norm": True, "use_mask_token": True}),
        seeing(
            {},
            INTERN_EYES | {"use_absolute_position_embeddings": False, "norm_type": "rms_norm"},
            downsample_ratio=0.25,
        ),
        seeing({}, INTERN_EYES | {"use_mean_pooling": False}, tie_word_embeddings=False),
    ],
    "llama4": [
        seeing(LLAMA4, LLAMA4_EYES),
        seeing(LLAMA4 | {"interleave_moe_layer_step": 2} | NARROW, LLAMA4_EYES, tie_word_embeddings=True),
        seeing(LLAMA4 | TIED, LLAMA4_EYES),
    ],
}
EARS = {"d_model": 12, "encoder_ffn_dim": 20, "encoder_layers": 2, "encoder_attention_heads": 2, "num_mel_bins": 8}
EARS |= {"max_source_positions": 10}


def hearing(text: dict[str, Any] | str, audio: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = seeing(text, {}, audio_config=audio, **more)
    del said["vision_config"]
    return said


AUDIO: dict[str, list[dict[str, Any]]] = {
    "qwen2_audio": [
        hearing("qwen2", EARS),
        hearing("llama", EARS | {"model_type": "qwen2_audio_encoder"}, tie_word_embeddings=True),
        hearing(TIED, {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}),
        {"text_config": {}, "audio_config": {}},
    ],
}
DECODERS = DENSE | EXPERTS
SAID = [{"model_type": kind, **SMALL, **said} for kind, several in DECODERS.items() for said in several]
SAID += [{"model_type": kind, **said} for kind, several in (LEGACY | VISION | AUDIO).items() for said in several]
CASES = [{key: value for key, value in config.items() if value is not ABSENT} for config in SAID]
KINDS = {config["model_type"]: config for config in reversed(CASES)}  # the first case of each kind
SIZES = {"vocab_size": 512, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256}
ALSO: dict[str, dict[str, Any]] = {
    kind: {"num_key_value_heads": 4} for kind in ("minicpm3", "deepseek_v2", "deepseek_v3")
}
ALSO["deepseek_v3"] |= {"n_group": 1, "topk_group": 1}
ALSO["dbrx"] = {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}


def name(config: dict[str, Any]) -> str:
    """Its kind and what it says beside SMALL; of its parts only that it has them."""
    said = {key: value for key, value in config.items() if SMALL.get(key) != value and key != "model_type"}
    changes = [key if isinstance(value, dict) else f"{key}={value}" for key, value in said.items()]
    return " ".join([config["model_type"], *changes])


def built(config: dict[str, Any]) -> Any:
    """The model without memory."""
    return built_of(config, "meta")


def built_of(config: dict[str, Any], device: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    by_part: dict[str, Any] = {
        "vision_config": AutoModelForImageTextToText,
        "audio_config": AutoModelForMultimodalLM,
        "encoder_config": AutoModelForMultimodalLM,
    }
    said = {key: value for key, value in (TOKENS | config).items() if key != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **copy.deepcopy(said))
    build: Any = next((by_part[key] for key in config if key in by_part), AutoModelForCausalLM)
    with torch.device(device):
        return build.from_config(made)


def of(kind: str) -> dict[str, Any]:
    return next(config for config in CASES if config["model_type"] == kind)


def roomy(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a vocabulary and a context for the tests' rows, and what its forward needs."""
    config = config | ALSO.get(config["model_type"], {})
    changed: dict[str, Any] = {key: SIZES.get(key, value) for key, value in copy.deepcopy(config).items()}
    if "text_config" in config and "vocab_size" not in config:
        changed["text_config"] |= {key: SIZES[key] for key in ("vocab_size", "max_position_embeddings")}
        if config["model_type"] in ("qwen2_vl", "qwen2_5_vl"):  # the halves of a head's width, by time, height, width
            changed["text_config"]["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    return changed
