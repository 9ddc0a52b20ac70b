"""Tiny models that see or hear, and batches with images or audios in them: as processors make them, but random."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE = 95  # the id that stands for a piece of an image, or of an audio
TOKENS = 12  # of text, in each of two rows
SIDE = 8  # of an image, in pixels
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
EYES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 2,
}
CLIP = {"model_type": "clip_vision_model", **EYES}
SIGLIP = {"model_type": "siglip_vision_model", **EYES, "vision_use_head": False}
TURNED = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
PATCHES = (SIDE // 2) ** 2  # of one image
BINS, FRAMES = 8, 40  # of a spectrogram
EARS = {"d_model": 16, "encoder_ffn_dim": 24, "encoder_layers": 2, "encoder_attention_heads": 2}
EARS |= {"num_mel_bins": BINS, "max_source_positions": FRAMES // 2}


def pixels(*before: int) -> Tensor:
    return torch.randn(*before, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def flat(ids: Tensor) -> dict[str, Tensor]:
    """One image a row."""
    return {"pixel_values": pixels(len(ids))}


def several(ids: Tensor) -> dict[str, Tensor]:
    """A list of images a row, here of one."""
    return {"pixel_values": pixels(len(ids), 1)}


def told_apart(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are an image's."""
    return {"pixel_values": pixels(len(ids)), "token_type_ids": (ids == IMAGE).long()}


def answering(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens answer: what comes before them is seen in both directions."""
    kinds = torch.zeros_like(ids)
    kinds[:, -TOKENS // 2 :] = 1
    return {"pixel_values": pixels(len(ids)), "token_type_ids": kinds}


def patches(ids: Tensor) -> dict[str, Tensor]:
    """All images' patches in one list, two frames deep, with the grid of each image."""
    width = 3 * 2 * 2 * 2
    values = torch.randn(len(ids) * PATCHES, width, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, SIDE // 2, SIDE // 2]] * len(ids))
    return {"pixel_values": values, "image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE).int()}


def spectrograms(ids: Tensor) -> dict[str, Tensor]:
    """One audio a row, padded to as long as its tower takes. A convolution halves the frames, and a mean does again."""
    values = torch.randn(len(ids), BINS, FRAMES, generator=torch.Generator().manual_seed(1))
    lengths = 4 * (ids == IMAGE).sum(dim=1, keepdim=True)
    return {"input_features": values, "feature_attention_mask": (torch.arange(FRAMES) < lengths).long()}


@dataclass(frozen=True)
class Sight:
    """A kind's config, how many tokens an image or an audio takes of a row, and what a batch holds of these."""

    config: dict[str, Any]
    tokens: int
    media: Callable[[Tensor], dict[str, Tensor]] = flat
    tower: str = "vision"  # the part that it is
    values: str = "pixel_values"  # what a batch calls them


LLAMA = {"model_type": "llama", **TEXT}
LLAVA = {"text_config": LLAMA, "vision_config": CLIP, "image_token_index": IMAGE}
IDEFICS = {"text_config": LLAMA, "vision_config": EYES, "scale_factor": 2, "image_token_id": IMAGE}
SIGHTS: dict[str, Sight] = {
    "llava": Sight(LLAVA, PATCHES),
    "idefics3": Sight(IDEFICS, PATCHES // 4, several),
    "smolvlm": Sight(IDEFICS, PATCHES // 4, several),
    "paligemma": Sight(
        {
            "text_config": {"model_type": "gemma", **TEXT},
            "vision_config": SIGLIP,
            "projection_dim": 32,
            "image_token_index": IMAGE,
        },
        PATCHES,
        answering,
    ),
    "gemma3": Sight(
        {
            "text_config": {"model_type": "gemma3_text", **TEXT},
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "tie_word_embeddings": False,
        },
        4,
        told_apart,
    ),
    "qwen2_vl": Sight(
        {
            "text_config": TURNED,
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 2},
            "image_token_id": IMAGE,
        },
        PATCHES // 4,
        patches,
    ),
    "qwen2_5_vl": Sight(
        {
            "text_config": TURNED,
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "out_hidden_size": 32,
                "num_heads": 2,
                "patch_size": 2,
                "window_size": 8,
                "fullatt_block_indexes": [1],
            },
            "image_token_id": IMAGE,
        },
        PATCHES // 4,
        patches,
    ),
    "internvl": Sight(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": EYES | {"image_size": [SIDE, SIDE], "patch_size": [2, 2]},
            "image_token_id": IMAGE,
            "tie_word_embeddings": False,
        },
        PATCHES // 4,
    ),
    "qwen2_audio": Sight(
        {"text_config": {"model_type": "qwen2", **TEXT}, "audio_config": EARS, "audio_token_index": IMAGE},
        FRAMES // 4 - 2,
        spectrograms,
        tower="audio",
        values="input_features",
    ),
}


def built(kind: str, more: dict[str, Any] | None = None, **text: int) -> Any:
    """A random model in float32, all of it frozen, with biases that are not zero. `text`: other numbers of its text."""
    from transformers import AutoConfig

    from factory.steps.walk import model_class

    torch.manual_seed(0)
    said = copy.deepcopy(SIGHTS[kind].config)
    for key, value in (more or {}).items():
        said[key] = said[key] | value if isinstance(value, dict) else value
    said["text_config"] |= text
    config = AutoConfig.for_model(kind, **said)
    model = model_class(config).from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.requires_grad_(False)


def batch(kind: str) -> dict[str, Tensor]:
    """Two rows: an image's or an audio's tokens after one of text; half of the text is trained."""
    sight = SIGHTS[kind]
    ids = torch.randint(3, 90, (2, sight.tokens + TOKENS), generator=torch.Generator().manual_seed(2))
    ids[:, 1 : 1 + sight.tokens] = IMAGE
    labels = ids.clone()
    labels[:, : -TOKENS // 2] = -100
    return {"input_ids": ids, "labels": labels, **sight.media(ids)}
