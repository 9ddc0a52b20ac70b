"""A built model to its Architecture, by walking its modules: what the plan's closed form is held against.

Also the way to plan for an architecture that has no closed form: it is built on the meta device and walked.
"""

import copy
import json
import sys
from dataclasses import replace
from typing import Any

from factory.architecture import Architecture, Block, Shape, Traits
from factory.architecture.dense import ALIASES, numbers, of_blocks, uniform
from factory.architecture.experts import EXPERT_WORDS
from factory.architecture.traits import IMAGES, MOVING, SOUNDS, UNKNOWN
from factory.architecture.types import image_layers

# layers of the decoder that no adapter stands beside: what chooses the experts is tiny, and some return tuples
ROUTERS = {"gate", "router", "shared_expert_gate"}
_LANGUAGE_MODELS = ("language_model", "text_model")  # in the path to the decoder of a model that sees or hears
_STACKED = 2  # at least so many dimensions has a parameter that holds the matrices of all experts
# config.json's words that differ from kind to kind, beside those that `ALIASES` and the kinds' own classes translate
_WORDS = {
    "n_inner": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "num_kv_heads": "num_key_value_heads",
    "kv_n_heads": "num_key_value_heads",
}
_NESTED = ("attn_config", "ffn_config")  # have more of the numbers


def walk(model: Any) -> Architecture:
    """The tensors of a transformers model, layer by layer. Adapters must not be attached yet."""
    said = _said(model.config.get_text_config())
    tensors = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    linears = {name: shape for name, shape in _all_linears(model).items() if ROUTERS.isdisjoint(name.split("."))}
    layers_at, layers = _decoder_layers(model, said["num_hidden_layers"])
    prefixes = tuple(f"{layers_at}.{index}." for index in range(layers))
    outside = {name: shape for name, shape in tensors.items() if not name.startswith(prefixes)}
    embedding = name_of(model, model.get_input_embeddings())
    head = name_of(model, model.get_output_embeddings())
    blocks = tuple(_block(prefix, tensors, linears) for prefix in prefixes)
    parts = _parts(model, layers_at, embedding, head) | image_layers(layers_at, blocks)
    beside = {name: shape for name, shape in linears.items() if f"{name}.".startswith(tuple(parts.values()))}
    return of_blocks(
        said | {"model_type": model.config.model_type},
        numbers(said | {"tie_word_embeddings": f"{head}.weight" not in tensors}),
        blocks,
        outside,
        layers_at=layers_at,
        embedding=embedding,
        head=head,
        parts=parts,
        part_linears={name: shape for name, shape in beside.items() if not name.startswith(prefixes)},
        active_expert_share=_active_expert_share(said),
        fixed=tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
    )


def _said(config: Any) -> dict[str, Any]:
    """The config's numbers by today's names."""
    plain = config.to_dict()
    inner = {name: value for part in _NESTED for name, value in (plain.get(part) or {}).items()}
    own = {word: name for name, word in config.attribute_map.items()}
    said = uniform(inner | plain, {}, ALIASES | _WORDS | own)
    width = said.get("intermediate_size") or 4 * said["hidden_size"]
    widest = max(width) if isinstance(width, list) else width  # some say each layer's
    return said | {"intermediate_size": widest, "num_hidden_layers": config.num_hidden_layers}


def _active_expert_share(said: dict[str, Any]) -> float:
    pairs = [(said.get(count), said.get(chosen)) for count, chosen in EXPERT_WORDS]
    return next((chosen / count for count, chosen in pairs if count and chosen), 1.0)


def name_of(model: Any, wanted: Any) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _all_linears(model: Any) -> dict[str, Shape]:
    """Every linear layer as (out, in), quantized ones and GPT-2's Conv1D too."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Shape] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nf, module.nx)
    return found


def outside_linears(config: Any, *, trust_remote_code: bool) -> list[str]:
    """The linear layers of a config's model that are not in `arch.linears()`: heads, routers, what sees or hears.

    The model is built without memory, from a copy of the config: some classes write into theirs.
    """
    import torch

    with torch.device("meta"):
        built = model_class(config).from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    inside = walk(built).linears()
    return sorted(name for name in _all_linears(built) if name not in inside)


def _decoder_layers(model: Any, count: int) -> tuple[str, int]:
    """Where the list of the decoder's layers is, and how long it is."""
    import torch

    decoder = model.get_decoder()
    for name, module in model.named_modules():
        inside = any(child is module for child in decoder.modules())
        if inside and isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, count
    raise AssertionError(f"{type(model).__name__} has no list of {count} layers")


def _block(prefix: str, tensors: dict[str, Shape], linears: dict[str, Shape]) -> Block:
    own = {name.removeprefix(prefix): shape for name, shape in tensors.items() if name.startswith(prefix)}
    return Block(
        tensors=own,
        linears={name.removeprefix(prefix): shape for name, shape in linears.items() if name.startswith(prefix)},
        experts={name: shape for name, shape in own.items() if _stacked(name, shape, f"{prefix}{name}", linears)},
    )


def _stacked(name: str, shape: Shape, whole: str, linears: dict[str, Shape]) -> bool:
    """Whether a parameter holds the matrices of all experts: no bias, and no layer of one expert."""
    matrices = len(shape) >= _STACKED and not name.endswith("_bias")
    return ".experts." in name and matrices and whole.rpartition(".")[0] not in linears


def _parts(model: Any, layers_at: str, embedding: str, head: str) -> dict[str, str]:
    """What stands beside the language model: its children's names, parameters too, and prefixes."""
    path = layers_at.split(".")
    language = next((name for name in _LANGUAGE_MODELS if name in path), None)
    if language is None:
        return {}
    above = ".".join(path[: path.index(language)])
    module = model.get_submodule(above)
    children = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    names = [f"{above}.{name}" if above else name for name in children]
    own = (f"{layers_at}.", f"{embedding}.", f"{head}.")
    return {name.rpartition(".")[2]: f"{name}." for name in names if not any(o.startswith(f"{name}.") for o in own)}


def main(what: str) -> int:
    """`python -m factory.steps.walk WHAT`: a question as JSON on stdin, an answer as the last line of stdout."""
    asked = json.load(sys.stdin)
    found, problem = {"architecture": _built, "gguf": _gguf}[what](asked)
    print(json.dumps({"found": found, "problem": problem}))
    return 0


def sees(config: type) -> bool:
    """Whether transformers has a class that reads images and text for the model of a config of this class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def multimodal(config: type) -> bool:
    """Whether it has one that reads more than text: there is a processor then."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

    return sees(config) or config in MODEL_FOR_MULTIMODAL_LM_MAPPING


def model_class(config: Any) -> Any:
    """The auto class that builds and reads a config's model: that of images first, then that of text alone."""
    return _class(type(config))


def _class(config: type) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    if sees(config):
        return AutoModelForImageTextToText
    return AutoModelForMultimodalLM if multimodal(config) and not _of_text(config) else AutoModelForCausalLM


def class_of(said: dict[str, Any]) -> str:
    """The name of that class, by a config.json: for a card. Of a model whose code comes with it, that of text."""
    from transformers import CONFIG_MAPPING

    kind = said.get("model_type", "")
    return _class(CONFIG_MAPPING[kind]).__name__ if kind in CONFIG_MAPPING else "AutoModelForCausalLM"


def _of_text(config: type) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return config in MODEL_FOR_CAUSAL_LM_MAPPING


def _built(asked: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The architecture of a model that is built without memory, or what stands in the way."""
    import torch
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = asked["config"].get("model_type")
    trusted = asked["trust_remote_code"]
    if kind in CONFIG_MAPPING:
        config = AutoConfig.for_model(**asked["config"])
        if not multimodal(type(config)) and not _of_text(type(config)):
            return None, "transformers has this architecture, but not as a model that writes text"
    elif "auto_map" in asked["config"] and trusted:
        config = AutoConfig.from_pretrained(asked["path"], revision=asked["revision"], trust_remote_code=True)
    elif "auto_map" in asked["config"]:
        return None, "code"
    else:
        return None, "the installed transformers does not know it"
    config._attn_implementation = "eager"  # a config may name a kernel of the hub, which is code
    with torch.device("meta"):
        model = model_class(config).from_config(config, trust_remote_code=trusted)
    return replace(walk(model), traits=traits(model)).as_json(), None


def traits(model: Any) -> Traits:
    """What a model's class says of itself. What only a forward shows, as whether documents are parted, is not claimed.

    Positions are config.json's to scale where it has a place for that and a module of the decoder reads it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    rotary = any(hasattr(module, "rope_type") for module in model.get_decoder().modules())
    return replace(
        UNKNOWN,
        sdpa=bool(model._supports_sdpa),
        flash=takes_flash(model),
        scalable=rotary and ("rope_type" in rope or "full_attention" in rope),
        recomputes=bool(model.supports_gradient_checkpointing),
        media=_media(type(model.config)),
        by_text=MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None) is type(model),
    )


def takes_flash(model: Any) -> bool:
    """Whether the class takes flash attention itself: of one that names others transformers takes those instead."""
    others = getattr(model, "_compatible_flash_implementations", None)
    return bool(model._supports_flash_attn) and (others is None or "flash_attention_2" in others)


def _media(config: type) -> tuple[str, ...]:
    """What a model takes beside text, as transformers maps its kind to classes: audios of those that do not see."""
    from transformers import PROCESSOR_MAPPING

    try:
        processor: Any = PROCESSOR_MAPPING[config]
        parts = set(processor.get_attributes())
    except (KeyError, ImportError):  # it has none, or a package of its is missing
        return IMAGES if sees(config) else ()
    known = parts <= {"tokenizer", "image_processor", "video_processor", "feature_extractor"}
    if sees(config):
        return MOVING if known and "video_processor" in parts else IMAGES
    return SOUNDS if known and parts == {"tokenizer", "feature_extractor"} and multimodal(config) else ()


def _gguf(asked: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    from pathlib import Path

    from transformers import AutoConfig

    path = Path(asked["path"])
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict(), None
    except (ValueError, KeyError, OSError) as error:
        return None, f"{path.name} cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
