"""Tiny models that see, in folders as they are published: weights, tokenizer, processor, chat template."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import sights
import tiny
import torch

SIDE = sights.SIDE
# of the tests' own, and like those of the models
QWEN = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{{ part['text'] if 'text' in part else '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}{% endfor %}\
{% endif %}\
{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# images before all text, whatever their order
FIRST = """{% for message in messages %}{{ message['role'] | upper + ':' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ ' ' + part['text'] }}{% endfor %}\
{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
FIRST_OF_BOTH = FIRST.replace(
    "{{ '<image>\n' }}{% endfor %}",
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\\n' }}{% endfor %}",
)
# the text between a role and what follows depends on whether an image does
COLON = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}\
{{ part['text'] if part['type'] == 'text' else '<image>' if part['type'] == 'image' }}{% endfor %}\
<end_of_utterance>\n{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
TURNS = """{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}\
{{ part['text'] | trim if part['type'] == 'text' else MARK }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# what is seen comes before the beginning-of-text token, as PaliGemma's processor lays a question and its answer out
PREFIX = """{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}<image>\
{% endfor %}{% if loop.first %}{{ bos_token }}{% endif %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"""


@dataclass(frozen=True)
class Seer:
    """`processor`: its class, and what processor_config.json says; `image`, `video`: types and settings for them."""

    config: dict[str, Any]
    processor: tuple[str, dict[str, Any]]
    image: tuple[str, dict[str, Any]]
    template: str
    marks: tuple[str, ...]  # special tokens; the first is what stands for a piece of an image
    named: dict[str, str] = field(default_factory=dict)  # those that the tokenizer knows by a name
    id_key: str = "image_token_id"
    video: tuple[str, dict[str, Any]] | None = None


SQUARE = {"size": {"height": SIDE, "width": SIDE}}
SHORTEST = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
GRID = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
PIXELS = {"size": {"shortest_edge": 64, "longest_edge": 256}, "patch_size": 2, "merge_size": 2}
FRAMES = ("Qwen2VLVideoProcessor", PIXELS)
ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
VISION = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
FAKE = "<fake_token_around_image>"
INTERN = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
INTERN |= {"video_token": "<video>"}
GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
LLAVA = {"patch_size": 2, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
TILED = {"size": {"height": SIDE, "width": SIDE}, "max_image_tiles": 4}


def _known(kind: str) -> dict[str, Any]:
    return sights.SIGHTS[kind].config


def _of_families(kind: str, **more: Any) -> dict[str, Any]:
    found = copy.deepcopy(families.of(kind))
    del found["model_type"]
    found["text_config"] |= more.pop("text", {})
    found["vision_config"] |= more.pop("vision", {})
    return found | more


SEERS: dict[str, Seer] = {
    "llava": Seer(
        _known("llava"),
        ("LlavaProcessor", LLAVA),
        ("CLIPImageProcessor", SHORTEST),
        FIRST,
        ("<image>",),
        id_key="image_token_index",
    ),
    "llava_next": Seer(
        _of_families("llava_next", image_grid_pinpoints=GRID),
        ("LlavaNextProcessor", LLAVA),
        ("LlavaNextImageProcessor", SHORTEST | {"image_grid_pinpoints": GRID}),
        FIRST,
        ("<image>",),
        id_key="image_token_index",
    ),
    "llava_onevision": Seer(
        _of_families("llava_onevision", image_grid_pinpoints=GRID, vision_aspect_ratio="anyres_max_9"),
        ("LlavaOnevisionProcessor", {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}),
        ("LlavaOnevisionImageProcessor", SQUARE | {"image_grid_pinpoints": GRID}),
        FIRST_OF_BOTH,
        ("<image>", "<video>"),
        id_key="image_token_index",
        video=("LlavaOnevisionVideoProcessor", SQUARE),
    ),
    "idefics2": Seer(
        _of_families("idefics2"),
        ("Idefics2Processor", {"image_seq_len": 6}),
        ("Idefics2ImageProcessor", {"size": {"shortest_edge": 6, "longest_edge": SIDE}, "do_image_splitting": False}),
        COLON,
        ("<image>", FAKE, "<end_of_utterance>"),
    ),
    "idefics3": Seer(
        _known("idefics3"),
        ("Idefics3Processor", {"image_seq_len": 4}),
        ("Idefics3ImageProcessor", {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": SIDE}}),
        COLON,
        ("<image>", FAKE, "<end_of_utterance>", "<global-img>", *ROWS),
    ),
    "smolvlm": Seer(
        _known("smolvlm"),
        ("SmolVLMProcessor", {"image_seq_len": 4}),
        ("SmolVLMImageProcessor", {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": SIDE}}),
        COLON,
        ("<image>", FAKE, "<end_of_utterance>", "<global-img>", *ROWS),
        video=("SmolVLMVideoProcessor", {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": SIDE}}),
    ),
    "qwen2_vl": Seer(
        _known("qwen2_vl"), ("Qwen2VLProcessor", {}), ("Qwen2VLImageProcessor", PIXELS), QWEN, VISION, video=FRAMES
    ),
    "qwen2_5_vl": Seer(
        _known("qwen2_5_vl"), ("Qwen2_5_VLProcessor", {}), ("Qwen2VLImageProcessor", PIXELS), QWEN, VISION, video=FRAMES
    ),
    "qwen3_vl": Seer(
        _of_families("qwen3_vl", text=TURNED | {"head_dim": 8}, vision={"hidden_size": 16}),
        ("Qwen3VLProcessor", {}),
        ("Qwen2VLImageProcessor", PIXELS),
        QWEN,
        VISION,
        video=("Qwen3VLVideoProcessor", PIXELS | {"size": {"shortest_edge": 128, "longest_edge": 1024}}),
    ),
    "paligemma": Seer(
        _known("paligemma"),
        ("PaliGemmaProcessor", {}),
        ("SiglipImageProcessor", SQUARE | {"image_seq_length": 16}),
        PREFIX,
        ("<image>", "<bos>", *(f"<loc{number:04}>" for number in range(1024)), *(f"<seg{n:03}>" for n in range(128))),
        {"bos_token": "<bos>"},
        id_key="image_token_index",
    ),
    "gemma3": Seer(
        _known("gemma3"),
        ("Gemma3Processor", {"image_seq_length": 4}),
        ("Gemma3ImageProcessor", SQUARE),
        TURNS.replace("MARK", "'<start_of_image>'"),
        ("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<bos>"),
        GEMMA | {"bos_token": "<bos>"},
        id_key="image_token_index",
    ),
    "internvl": Seer(
        _known("internvl"),
        ("InternVLProcessor", {"image_seq_length": 4}),
        ("GotOcr2ImageProcessor", SQUARE | {"max_patches": 2, "min_patches": 1, "crop_to_patches": True}),
        TURNS.replace("MARK", "'<IMG_CONTEXT>\\n' if part['type'] == 'image' else '<video>\\n'"),
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<bos>"),
        INTERN | {"bos_token": "<bos>"},
        video=("InternVLVideoProcessor", SQUARE),
    ),
    "mllama": Seer(
        _of_families("mllama"),
        ("MllamaProcessor", {}),
        ("MllamaImageProcessor", TILED),
        TURNS.replace("MARK", "'<|image|>'"),
        ("<|image|>", "<|python_tag|>", "<bos>"),
        {"bos_token": "<bos>"},
        id_key="image_token_index",
    ),
}


def tokenizer(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    seer, made = SEERS[kind], copy.deepcopy(tiny.tokenizer())
    made.add_special_tokens({"additional_special_tokens": list(seer.marks)})
    names = {name: text for name, text in seer.named.items() if name != "bos_token"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token=seer.named.get("bos_token"),
        **({"extra_special_tokens": names} if names else {}),
    )
    made.chat_template = seer.template
    return made


def model(kind: str, known: Any) -> Any:
    """A random one in float32 for this tokenizer."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    seer, said = SEERS[kind], copy.deepcopy(SEERS[kind].config)
    said["text_config"] |= {"vocab_size": len(known), "max_position_embeddings": 1024, "pad_token_id": 0}
    said[seer.id_key] = known.convert_tokens_to_ids(seer.marks[0])
    if kind == "llava_onevision":
        said["video_token_index"] = known.convert_tokens_to_ids("<video>")
    if kind.startswith("qwen"):
        named = {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
        named["video_token_id"] = "video_pad"
        said |= {key: known.convert_tokens_to_ids(f"<|{name}|>") for key, name in named.items()}
    made = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **said))
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return made


def save(kind: str, folder: Path, *, weights: bool = True) -> Path:
    seer, known = SEERS[kind], tokenizer(kind)
    folder.mkdir(parents=True, exist_ok=True)
    known.save_pretrained(folder)
    if weights:
        model(kind, known).save_pretrained(folder)
    name, said = seer.processor
    type, settings = seer.image
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": type, **settings}))
    if seer.video:
        type, settings = seer.video
        said_of_videos = json.dumps({"video_processor_type": type, **settings})
        (folder / "video_preprocessor_config.json").write_text(said_of_videos)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name, **said}))
    return folder


def processor(kind: str, folder: Path, frames: Any = None) -> Any:
    """The factory's, read of the folder's files; transformers' is its `own`."""
    from transformers import AutoTokenizer

    from factory.data.media import Processor
    from factory.steps.load import read_processor

    return Processor(read_processor(str(folder), None), kind, AutoTokenizer.from_pretrained(folder), frames)
