"""What takes more than one key to tell where nothing is trained: of a prediction, an export or a conversation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.imported.said import Said, text_of
from factory.plan import Verb

_TRAINED = ("do_train", "do_predict", "do_eval", "predict_with_generate")
_QUANTIZED = 4  # bits that gptq has here
# what a config of a conversation has, beside what the table says of that verb: one that has more is of training
_OF_A_CHAT = ("model_name_or_path", "adapter_name_or_path", "template", "trust_remote_code", "finetuning_type")


def verb_of(given: Mapping[str, Any], of_chat: frozenset[str]) -> Verb:
    """What `llamafactory-cli` would do with it. `of_chat`: keys that only a conversation reads."""
    if given.get("export_dir"):
        return "export"
    if given.get("do_train"):
        return "train"
    if any(given.get(name) for name in _TRAINED) or given.get("do_train") is False:
        return "evaluate"
    return "chat" if given.keys() <= {*_OF_A_CHAT, *of_chat} else "train"


def predicted(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """There nothing but the answers is measured where they are asked for."""
    if given.get("predict_with_generate"):
        said.set("evaluate.perplexity", False)
    yield from ("do_predict", "do_train", "do_eval")


def exported(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    if size := given.get("export_size"):
        said.set("export.shard_size", f"{text_of(size)}GB")
    bits = given.get("export_quantization_bit")
    if bits == _QUANTIZED:
        said.set("export.quantization", "gptq")
        said.noted["export_quantization_bit"] = "gptq reads its scales from export.calibration, or from built-in text"
    elif bits is not None:
        fix = f"set export_quantization_bit={_QUANTIZED}, or take the line out of the file"
        said.refuse("export_quantization_bit", bits, f"gptq is of {_QUANTIZED} bits here", fix)
    yield from ("export_size", "export_quantization_bit")


def talked(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """A conversation is of what was trained to answer; a reward model's scores are served."""
    if given.get("do_sample") is False:
        said.set("generation.temperature", 0)
        yield "temperature"
    yield "do_sample"
