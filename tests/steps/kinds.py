"""A tiny config of each architecture that the losses know the head of, by model_type."""

from typing import Any

from families import SMALL as NUMBERS

NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
NARROW = {"head_dim": 8}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
# a quarter of so narrow a head would turn at one frequency
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
QWEN_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
RANKS = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 5,
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
HUNYUAN = {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 24, **NARROW}

TEXT: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral": NARROW,
    "ministral3": {},
    "mixtral": LOCAL,
    "qwen2": {},
    "qwen3": NARROW,
    "qwen2_moe": QWEN_EXPERTS,
    "qwen3_moe": {**QWEN_EXPERTS, **NARROW},
    "qwen3_next": {**QWEN_EXPERTS, **NARROW, **HALF, "layer_types": ["linear_attention", "full_attention"]},
    "gemma": NARROW,
    "gemma2": {**NARROW, "final_logit_softcapping": 0.7},
    "gemma3_text": {**NARROW, **WINDOWS, "final_logit_softcapping": 0.7},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {**LOCAL, "logits_scaling": 3.0},
    "granitemoeshared": {**LOCAL, "logits_scaling": 3.0},
    "granitemoehybrid": {**LOCAL, "logits_scaling": 3.0, "layer_types": ["attention"] * 2, "mamba_n_heads": 4},
    "minicpm3": {**RANKS, "dim_model_base": 8},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOWS,
    "olmoe": QWEN_EXPERTS,
    "smollm3": {},
    "seed_oss": NARROW,
    "exaone4": {},
    "ernie4_5": NARROW,
    "ernie4_5_moe": ERNIE,
    "hunyuan_v1_dense": NARROW,
    "hunyuan_v1_moe": HUNYUAN,
    "nemotron": {},
    "arcee": {},
    "helium": NARROW,
    "glm": NARROW,
    "glm4": NARROW,
    "glm4_moe": {**ROUTED, **NARROW},
    "phi": {},
    "phi3": {},
    "phimoe": {**LOCAL, "lm_head_bias": True},
    "starcoder2": {},
    "stablelm": HALF,
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 64},
    "gpt_neox": HALF,
    "gptj": {"rotary_dim": 4},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {},
    "falcon": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "deepseek_v2": {**ROUTED, **RANKS},
    "deepseek_v3": {**ROUTED, **RANKS},
    "gpt_oss": {**LOCAL, **NARROW},
    "llama4_text": {**LOCAL, **NARROW, "intermediate_size_mlp": 40},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "exaone": {},
    "internlm3": {},
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {**VISION, "image_size": 16, "patch_size": 8}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
SEEING: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **NARROW, **WINDOWS},
        "vision_config": SEEN,
        "mm_tokens_per_image": 4,
    },
    "idefics2": {"text_config": {"model_type": "mistral"}, "vision_config": SEEN},
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": SEEN},
    "smolvlm": {"text_config": {"model_type": "llama"}, "vision_config": SEEN},
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**VISION, "image_size": [16, 16], "patch_size": [8, 8]},
    },
    "llava": {"text_config": {"model_type": "llama"}, "vision_config": {"model_type": "clip_vision_model", **SEEN}},
    "llava_next": {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model", **SEEN},
    },
    "llava_onevision": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {"model_type": "siglip_vision_model", **SEEN},
    },
    "mistral3": {"text_config": {"model_type": "mistral"}, "vision_config": {"model_type": "pixtral", **SEEN}},
    "paligemma": {
        "text_config": {"model_type": "gemma", **NARROW},
        "vision_config": {"model_type": "siglip_vision_model", **SEEN},
    },
    "qwen2_vl": {
        "text_config": {"rope_parameters": ROTARY},
        "vision_config": {
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
    },
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": ROTARY},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_heads": 2,
            "patch_size": 8,
        },
    },
    "qwen3_vl": {
        "text_config": {**NARROW, "rope_parameters": ROTARY},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_heads": 2,
        },
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
        },
    },
}
HEARD = {"d_model": 16, "encoder_ffn_dim": 24, "encoder_layers": 1, "encoder_attention_heads": 2, "num_mel_bins": 8}
HEARING: dict[str, dict[str, Any]] = {
    "qwen2_audio": {"text_config": {"model_type": "qwen2"}, "audio_config": HEARD | {"max_source_positions": 10}},
}
BESIDE_TEXT = SEEING | HEARING
KINDS = (*TEXT, *BESIDE_TEXT)


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    if kind in TEXT:
        return AutoConfig.for_model(kind, **{**NUMBERS, **NO_TOKENS, **TEXT[kind], **changes})
    said = BESIDE_TEXT[kind]
    return AutoConfig.for_model(kind, **{**said, "text_config": {**NUMBERS, **NO_TOKENS, **said["text_config"]}})


def built(config: Any, attention: str = "eager") -> Any:
    """A random model in float32 and evaluation mode, of weights and biases large enough to be seen."""
    import torch

    from factory.steps.walk import model_class

    torch.manual_seed(0)
    # the experts' other implementations have no float64
    model = model_class(config).from_config(config, attn_implementation=attention, experts_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 2:
                parameter.mul_(5)
    return model.eval()


def build(kind: str, attention: str = "eager") -> Any:
    return built(config(kind), attention)
