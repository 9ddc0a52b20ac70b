"""What was meant where a key, an option or a word of the command line does not exist."""

import os
import re
from pathlib import Path
from typing import Any

from factory.config.groups import CONF
from factory.config.hub import ID as HUB_ID
from factory.config.parsed import yaml_of
from factory.config.refusal import Refusal, alike, did_you_mean, nearest, refusal
from factory.config.typed import plain
from factory.run.folder import last_here

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
_TABLE = Path(__file__).parent / "imported" / "llamafactory" / "table.yaml"
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


def unknown_key(path: str, value: Any, known: list[str]) -> Refusal:
    """`known`: the keys that could stand where this one stands."""
    group, dot, name = path.rpartition(".")
    if not dot:
        known = [*_groups(), *sorted(_keys(), key=lambda key: key.count("."))]
    lasts = {key.rpartition(".")[2]: key for key in reversed(known)}  # a shared group would make all of them alike
    near, meant = alike(name, lasts), _named_so(path)
    sure = bool(dot and near) and not (meant or "").startswith(f"{group}.") and nearest(name, lasts, 0.75)
    found = lasts[near] if near and (sure or not meant) else meant
    topic = f"explain {group.partition('.')[0]}" if dot else "--help"
    hint = f"did you mean {found}? " if found else ""
    return refusal("unknown-key", f"{path}={plain(value)}", "there is no such key", hint=hint, topic=topic)


def flag_meant(flag: str) -> str:
    """`did you mean X=…? ` for `--learning-rate`, or nothing; other tools have a flag where `resume` is a verb here."""
    if flag == "--resume":
        return "to go on with a run, `factory resume FOLDER`; "
    found = _named_so(flag.lstrip("-").replace("-", "_"))
    return f"did you mean {found}=…? " if found else ""


def _named_so(path: str) -> str | None:
    """The key that has this name in its own group's words, in another tool, or in another group."""
    group, dot, name = path.rpartition(".")
    same = [key for key in _keys() if key.rpartition(".")[2] == name and (not dot or group in _groups())]
    return IN_GROUP.get(group, {}).get(name) or _elsewhere(name) or next(iter(same), None)


def _keys() -> list[str]:
    from factory.config.settings import all_keys  # which reads this module

    return [key.path for key in all_keys() if "<name>" not in key.path]


def _groups() -> tuple[str, ...]:
    from factory.config.settings import GROUPS, NAMED

    return (*GROUPS, *NAMED)


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
        from factory.config.models import option_of

        return (option_of(name) if group == "model" else _set_of(name)) or _HUB[group].format(name)
    if group == "hardware" and re.fullmatch(r"\d+ ?[kmgt]i?b", name.lower()):
        return f"hardware.memory={name}"
    if (own := _own_options(group, name)) and "/" not in name:  # options lie in their group's folder itself
        return f"--config-dir {own} {group}={name}"
    if group == "data" and (rows := _rows_beside(name)):
        return _PATHS[group].format(rows)
    small = name.lower()
    return NAMES.get(group, {}).get(small) or (small if small in known else None)


def _set_of(hub_id: str) -> str | None:
    """The option of a data set on the hub."""
    files = {file.stem: yaml_of(file.read_bytes()) for file in sorted((CONF / "data").glob("[!_]*.yaml"))}
    return next((name for name, keys in files.items() if keys.get("path") == hub_id), None)


def _own_options(group: str, name: str) -> str | None:
    """A folder beside or under the working one that has this option: what --config-dir would name."""
    file = Path("recipes" if group == "recipe" else group, f"{name}.yaml")
    folders = (path for path in (Path(), *sorted(Path().glob("*/"))) if not path.name.startswith("."))
    return next((str(folder) for folder in folders if os.path.isfile(folder / file)), None)  # noqa: PTH113  as below


def _rows_beside(name: str) -> str | None:
    """A file of rows in the working folder that has this name but for its type."""
    from factory.data.read import SUFFIXES

    files = (f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if os.path.isfile(file)), None)  # noqa: PTH113  as below


def not_a_setting(word: str, rest: list[str]) -> Refusal:
    """Of a word without `=`: the setting that it is, or that it makes with the next one."""
    if meant := setting_meant(word, rest):
        return refusal("not-a-setting", word, "it is not key=value", hint=f"did you mean {meant}? ")
    if os.sep in word:
        return refusal("not-a-setting", word, "there is no such folder or file", hint=last_here())
    return refusal("not-a-setting", word, "it is not key=value", hint="")


def setting_meant(word: str, rest: list[str]) -> str | None:
    if word.partition(".")[0] in _groups() and rest and "=" not in rest[0]:
        return f"{word}={rest[0]}"
    if os.path.isdir(word):  # noqa: PTH112  of a name that is too long, or in a closed folder, Path raises
        return f"run={word}"
    return _PATHS["data"].format(word) if os.path.isfile(word) else None  # noqa: PTH113
