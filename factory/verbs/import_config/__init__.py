"""A config of LLaMA-Factory as a command line of Factory: key by key from a table, the few choices in code."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from factory.config.parsed import NamedTwice, yaml_of
from factory.config.refusal import UserError, refuse
from factory.config.settings import Verb
from factory.verbs.import_config import rows, running, trained, used
from factory.verbs.import_config.said import Said, text_of
from factory.verbs.import_config.table import (
    EXAM,
    by_table,
    in_order,
    of_chat,
    of_inference,
    refuse_misspelt,
    unsaid,
)

_import_config = partial(
    refuse,
    "import-config",
    because="it is read as a config of LLaMA-Factory (YAML or JSON)",
    fix="give it a file that `llamafactory-cli` takes, to train, to export, to chat or to eval",
)

# each says into what is said, and gives the keys that it has read; what is said first decides what others mean
_Choice = Callable[[Mapping[str, Any], Said, Path], Iterator[str]]
_FIRST: dict[Verb, tuple[_Choice, ...]] = {"train": trained.KINDS, "evaluate": (trained.stage_of,)}
_USED: tuple[_Choice, ...] = (trained.adapter, trained.model, trained.template, trained.quantized)
_THEN: dict[Verb, tuple[_Choice, ...]] = {
    "train": (*trained.REST, *rows.ALL, *running.ALL),
    "evaluate": (*_USED, trained.system, rows.measured, running.precision, running.answers, used.predicted),
    "export": (*_USED, used.exported),
    "chat": (*_USED, used.talked),
}
_ASKED: tuple[_Choice, ...] = (trained.adapter, trained.model, trained.quantized, trained.system, used.asked)
_UNREAD: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "it is a folder",
    UnicodeDecodeError: "it is not text in UTF-8",
}


def translate(file: Path) -> Said:
    """Raises UserError where the file is no such config."""
    written = _read(file)
    exam = used.is_exam(written)
    refuse_misspelt(written, file, exam=exam)
    # there too a null is a key that is not said, but for the norm, which then cuts nothing
    given = {name: value for name, value in written.items() if value is not None or name == "max_grad_norm"}
    said = Said(used.verb_of(given, of_inference(), of_chat()))
    first, then = ((), _ASKED) if exam else (_FIRST.get(said.verb, ()), _THEN[said.verb])
    read = {name for choose in first for name in choose(given, said, file)}
    kinds = {EXAM} if exam else _kinds(given, said)
    given = unsaid(given, kinds) | given
    for choose in then:
        read |= set(choose(given, said, file))
    for name, value in in_order(given):
        if name not in read:
            by_table(name, value, said, kinds)
    if said.refused:
        raise UserError(*said.refused)
    return said


def _kinds(given: Mapping[str, Any], said: Said) -> set[str]:
    """What the table's `defaults` and `of` call this run: its verb, and what is trained; and the like."""
    kind = text_of(given.get("finetuning_type", "lora"))
    others = {"streaming": "streaming", "predict_with_generate": "generation"}
    others |= {"pissa_init": "pissa"} if kind == "lora" else {}
    trains = {kind, *(said.overrides.get(key, kind) for key in ("stage", "stage.loss", "method"))}
    names = {said.verb} | (trains if said.verb == "train" else set())
    return names | {ours for name, ours in others.items() if given.get(name)}


def _read(file: Path) -> dict[str, Any]:
    try:
        given = yaml_of(file.read_text(encoding="utf-8"), once_each=True)
    except NamedTwice as error:  # LLaMA-Factory reads no such file either
        raise _import_config(str(file), f"it {error}; take one of the lines out") from None
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        wrong = _UNREAD.get(type(error)) or f"it cannot be read ({why[:200]})"
        raise _import_config(str(file), wrong) from None
    if given is None:
        raise _import_config(str(file), "there is nothing in it")
    if not isinstance(given, dict) or not {"stage", "finetuning_type", "model_name_or_path"} & given.keys():
        raise _import_config(str(file), "it has none of stage, finetuning_type and model_name_or_path")
    return {str(name): value for name, value in given.items()}
