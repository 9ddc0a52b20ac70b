"""What takes more than one key to tell where nothing is trained: of a prediction, an export or a conversation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.config.settings import Verb
from factory.verbs.import_config.said import Said, text_of
from factory.verbs.import_config.trained import template

_TRAINED = ("do_train", "do_predict", "do_eval", "predict_with_generate")
# of `llamafactory-cli eval`: the benchmark here, and its language; of other splits no answers are scored here
_TASKS = {"mmlu_test": ("mmlu", "en"), "ceval_validation": ("ceval", "zh"), "cmmlu_test": ("cmmlu", "zh")}
_QUANTIZED = 4  # bits that gptq has here
# what a config of a conversation has, beside what the table says of that verb: one that has more is of training
_OF_A_CHAT = ("model_name_or_path", "adapter_name_or_path", "template", "finetuning_type")
_OF_A_CHAT += ("quantization_bit", "quantization_method")
_OF_ROWS = ("stage", "dataset", "eval_dataset", "output_dir")  # and so not of a conversation
_FEW_SHOT = "fewshot"  # the template that is none


def is_exam(given: Mapping[str, Any]) -> bool:
    """Whether it is one of `llamafactory-cli eval`, which asks a benchmark's questions."""
    return bool(given.get("task")) and not given.get("export_dir") and not given.get("do_train")


def verb_of(given: Mapping[str, Any], of_inference: frozenset[str], of_chat: frozenset[str]) -> Verb:
    """What `llamafactory-cli` would do with it. `of_inference`, `of_chat`: keys that no training, or a chat, reads."""
    if given.get("export_dir"):
        return "export"
    if given.get("do_train"):
        return "train"
    if is_exam(given) or any(given.get(name) for name in _TRAINED) or given.get("do_train") is False:
        return "evaluate"
    talks = bool(given.keys() & of_inference) and not given.keys() & {*_OF_ROWS}
    return "chat" if talks or given.keys() <= {*_OF_A_CHAT, *of_chat} else "train"


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
    if given.get("export_legacy_format"):
        said.missing["export_legacy_format"] = "weights are written as safetensors alone, there as .bin files"
        yield "export_legacy_format"
    yield from ("export_size", "export_quantization_bit")


def asked(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """A benchmark's questions alone: no rows are measured."""
    task, language = text_of(given["task"]), text_of(given.get("lang", "en"))
    if task not in _TASKS:
        wrong = f"{task} is none of {', '.join(_TASKS)}"
        said.refuse("task", task, wrong, "set task to one of these: of other questions no answers are scored here")
        return
    name, own = _TASKS[task]
    said.set("evaluate.benchmarks", [name])
    said.set("evaluate.perplexity", False)
    said.set("evaluate.samples", 0)
    said.noted["task"] = (
        "asked as its authors ask it: the first evaluate.shots solved questions of each subject; there each question "
        "has others, drawn at random"
    )
    if language == own:
        said.same["lang"] = "each benchmark is asked in its own language"
    else:
        said.missing["lang"] = f"{task} is asked in its own language here ({own}), there in another ({language})"
    if "task_dir" in given:
        said.noted["task_dir"] = (
            f"evaluate.path has a folder {name} of unpacked files (docs/evaluation.md), there {name}.zip; without "
            "evaluate.path they come from the hub"
        )
    if given.get("template") == _FEW_SHOT:
        said.same["template"] = "questions are asked as plain text, unless evaluate.chat=true"
    else:
        said.set("evaluate.chat", True)
        yield from template(given, said, file)
    yield from ("task", "lang", "template")


def talked(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """A conversation is of what was trained to answer; a reward model's scores are served."""
    if given.get("do_sample") is False:
        said.set("generation.temperature", 0)
        yield "temperature"
    yield "do_sample"
