"""Suggestions where a key, an option or a word of the command line does not exist."""

import os
import re
from pathlib import Path
from typing import Any

from factory.config import tables
from factory.config.groups import GROUPS
from factory.config.hub import ID as HUB_ID
from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, alike, did_you_mean, nearest, refusal
from factory.config.values import plain

# as people and other tools say it; what LLaMA-Factory says is in the table that its configs are read by
SHORT = {
    "lr": "stage.learning_rate",
    "epochs": "stage.num_epochs",
    "steps": "stage.max_steps",
    "bs": "stage.batch_size",
    "train_batch_size": "stage.batch_size",
    "grad_accum": "stage.gradient_accumulation_steps",
    "scheduler": "stage.lr_scheduler",
    "r": "method.rank",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "dataset": "data",
    "model_name_or_path": "model.path",
    "gradient_checkpointing": "compute.activation_checkpointing",
    "load_in_4bit": "method.quantization.bits",
    "load_in_8bit": "method.quantization.bits",
    "dtype": "precision",
    "gpus": "hardware.num_processes",
    "system": "chat.system",
}
# keys of a group as people call them there, where the name itself is one of another group
IN_GROUP: dict[str, dict[str, str]] = {
    "preview": dict.fromkeys(("samples", "max_samples", "num_samples", "count", "limit", "n"), "preview.rows"),
}
# options as people call them, in small letters
NAMES = {
    "method": {"lora+": "lora_plus", "freezing": "freeze"},
    "stage": {
        **dict.fromkeys(("pretrain", "pretraining", "cpt"), "pt"),
        **dict.fromkeys(("finetune", "finetuning", "instruct"), "sft"),
        **dict.fromkeys(("reward", "reward_model"), "rm"),
        "rlhf": "ppo",
    },
    "hardware": dict.fromkeys(("gpu", "cuda"), "single_gpu"),
}
_TABLE = Path(__file__).with_name("llamafactory.yaml")
_PATHS = {
    "model": "model.path={}",
    "data": "data=file data.path={}",
    "method": "method=full method.name={}",
    "stage": "stage.name={}",
}


_HUB = {
    "model": "model.path={}",
    "data": "data=file data.path={} data.sources.file.origin=hub data.sources.file.format=FORMAT",
}


def unknown_key(path: str, value: Any, known: list[str], every: list[str]) -> Refusal:
    """Return the refusal of a key that does not exist. `known` could stand in its place; `every` are all keys."""
    group, dot, name = path.rpartition(".")
    if not dot:
        groups = dict.fromkeys(key.partition(".")[0] for key in every)
        known = [*groups, *sorted(every, key=lambda key: key.count("."))]
    lasts = {key.rpartition(".")[2]: key for key in reversed(known)}  # a shared group would make all of them alike
    near, meant = alike(name, lasts), _of_that_name(path, every)
    sure = bool(dot and near) and not (meant or "").startswith(f"{group}.") and nearest(name, lasts, 0.75)
    found = lasts[near] if near and (sure or not meant) else meant
    hint = f"did you mean {found}? " if found else ""
    return refusal(
        "unknown-key",
        f"{path}={plain(value)}",
        "there is no such key",
        because="a key that nothing reads would be ignored",
        fix=f"{hint}`factory {f'explain {group.partition(chr(46))[0]}' if dot else '--help'}` lists what there is",
    )


def flag_meant(flag: str, every: list[str]) -> str:
    """Return `did you mean X=…? ` for `--learning-rate`, or nothing; `--resume` of other tools is a verb here."""
    if flag == "--resume":
        return "to continue a run, `factory resume FOLDER`; "
    found = _of_that_name(flag.lstrip("-").replace("-", "_"), every)
    return f"did you mean {found}=…? " if found else ""


def _of_that_name(path: str, every: list[str]) -> str | None:
    """The key of this name in its own group's words, in another tool, or in another group."""
    group, dot, name = path.rpartition(".")
    there = not dot or any(key.startswith(f"{group}.") for key in every)
    same = [key for key in every if key.rpartition(".")[2] == name and there and "<name>" not in key]
    return IN_GROUP.get(group, {}).get(name) or _elsewhere(name) or next(iter(same), None)


def _elsewhere(name: str) -> str | None:
    if name in SHORT:
        return SHORT[name]
    entry = yaml_of(_TABLE.read_bytes())["keys"].get(name)
    return entry.get("key") if isinstance(entry, dict) else entry


def option_meant(group: str, name: str, known: list[str]) -> str:
    """`did you mean X? ` for the option that is alike; for a path or a hub id, how it is given; or nothing."""
    meant = _option_meant(group, name, known)
    return f"did you mean {meant}? " if meant else did_you_mean(name.lower(), known)


def _option_meant(group: str, name: str, known: list[str]) -> str | None:
    if group in _PATHS and os.path.exists(name):  # noqa: PTH110  as in `setting_meant`
        return _PATHS[group].format(name)
    if group in _HUB and HUB_ID.fullmatch(name):
        return tables.option_of(group, name) or _HUB[group].format(name)
    if group == "hardware" and re.fullmatch(r"\d+ ?[kmgt]i?b", name.lower()):
        return f"hardware.memory={name}"
    if (own := _own_options(group, name)) and "/" not in name:  # options lie in their group's folder itself
        return f"--config-dir {own} {group}={name}"
    if group == "data" and (rows := _rows_beside(name)):
        return _PATHS[group].format(rows)
    small = name.lower()
    return NAMES.get(group, {}).get(small) or (small if small in known else None)


def _own_options(group: str, name: str) -> str | None:
    """A folder beside or under the working one that has this option: what --config-dir would name."""
    file = Path(group, f"{name}.yaml")
    folders = (path for path in (Path(), *sorted(Path().glob("*/"))) if not path.name.startswith("."))
    return next((str(folder) for folder in folders if os.path.isfile(folder / file)), None)  # noqa: PTH113  as below


def _rows_beside(name: str) -> str | None:
    """A file in the working folder that has this name and another ending."""
    if re.fullmatch(r"[\w.-]+", name) is None:
        return None
    return next((str(file) for file in sorted(Path().glob(f"{name}.*")) if file.is_file()), None)


def not_a_setting(word: str, rest: list[str]) -> Refusal:
    """Return the refusal of a word without `=`, with the setting that it makes, maybe with the next word."""
    meant = setting_meant(word, rest)
    missing = not meant and os.sep in word
    return refusal(
        "not-a-setting",
        word,
        "there is no such folder or file" if missing else "it is not key=value",
        because="a command is VERB group=option key=value",
        fix=f"{f'did you mean {meant}? ' if meant else ''}`factory --help` has examples",
    )


def setting_meant(word: str, rest: list[str]) -> str | None:
    if word.partition(".")[0] in GROUPS and rest and "=" not in rest[0]:
        return f"{word}={rest[0]}"
    if os.path.isdir(word):  # noqa: PTH112  of a name that is too long, or in a closed folder, Path raises
        return f"run={word}"
    return _PATHS["data"].format(word) if os.path.isfile(word) else None  # noqa: PTH113
