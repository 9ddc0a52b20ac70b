"""What planning knows of a kind of model beside its tensors. No torch.

What is said here is proven against transformers' classes: the kernels in tests/architecture/test_attention.py, the
rest in tests/steps/test_heads.py and tests/steps/test_patch.py. Of kinds that are walked see `factory.steps.walk`.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    sdpa: bool = True  # its class takes torch's fused attention
    flash: bool = True  # its class takes flash attention
    ours: bool = True  # its class takes attention functions of ours, which are all that flows between tokens
    lengths: bool = True  # its class hands its attention function the lengths of a row's sequences, and its window
    drops: bool = False  # its attention drops out unless config.json says otherwise
    scalable: bool = True  # its positions are rotary, and config.json's to scale
    isolates: bool = True  # position_ids part packed documents
    isolates_below: tuple[str, int] | None = None  # so many tokens of a row: config.json's word for it, and its default
    recomputes: bool = True  # its class can make activations anew in the backward pass
    remote_code: bool = False  # no class of transformers builds it: its code comes with the model
    media: tuple[str, ...] = ()  # what it takes beside text, by the record's columns: images, videos, audios
    by_text: bool = True  # transformers' class for text alone is its class too


USUAL = Traits()
# of kinds without a closed form: what needs a proof is not claimed, and their walk adds what their class says
UNKNOWN = Traits(
    sdpa=False,
    flash=False,
    ours=False,
    lengths=False,
    scalable=False,
    isolates=False,
    recomputes=False,
    by_text=False,
)
REMOTE = replace(UNKNOWN, recomputes=True, remote_code=True)
IMAGES, MOVING, SOUNDS = ("images",), ("images", "videos"), ("audios",)
SEES = Traits(ours=False, media=IMAGES, by_text=False)  # its tower's attention looks in both directions
SEES_WITHOUT_FLASH = replace(SEES, flash=False)
SEES_VIDEOS = replace(SEES, media=MOVING)
HEARS = replace(SEES, media=SOUNDS)

# transformers scales queries by their place in the row, whatever position_ids say, from this one on
SCALED = ("floor_scale", 8192)
# transformers 5.24 cannot call these: the class that sees reads a field of the output that is not there
TEXT_APART = ("llama4",)

# position_ids do not part documents where there is alibi, where positions are learned, where the mask leaves them out,
# and where there are convolutions or states
TRAITS: dict[str, Traits] = {
    **dict.fromkeys(("baichuan", "chatglm", "internlm", "internlm2", "minicpm"), REMOTE),
    **dict.fromkeys(("bloom", "mpt"), Traits(sdpa=False, flash=False, ours=False, scalable=False, isolates=False)),
    "dbrx": Traits(ours=False),
    "falcon": Traits(ours=False),
    "gemma2": Traits(sdpa=False, ours=False),
    "gpt_neo": Traits(sdpa=False, ours=False, scalable=False),
    "gpt_oss": Traits(sdpa=False, flash=False, ours=False, isolates=False),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), Traits(scalable=False, drops=True)),
    "granitemoehybrid": Traits(ours=False, scalable=False, isolates=False),
    "lfm2": Traits(isolates=False),
    **dict.fromkeys(("nemotron", "stablelm"), Traits(lengths=False)),
    "gptj": Traits(scalable=False),
    "seed_oss": Traits(drops=True),
    "phimoe": Traits(scalable=False, lengths=False),
    "llama4_text": Traits(flash=False, isolates_below=SCALED),
    "opt": Traits(scalable=False, isolates=False),
    "qwen3_next": Traits(ours=False, isolates=False),
    **dict.fromkeys(("idefics2", "idefics3", "llava", "llava_next", "mistral3"), SEES),
    **dict.fromkeys(("internvl", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"), SEES_VIDEOS),
    **dict.fromkeys(("mllama", "paligemma"), SEES_WITHOUT_FLASH),
    "llama4": replace(SEES_WITHOUT_FLASH, isolates_below=SCALED),
    "gemma3": replace(SEES_WITHOUT_FLASH, by_text=True),
    "qwen2_audio": HEARS,
}
