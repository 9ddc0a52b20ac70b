"""LLaMA-Factory's keys and its defaults, by the table beside this file: ours, or why there is none."""

from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import factory.config
from factory.config.parsed import yaml_of
from factory.config.refusal import UserError, nearest, refusal
from factory.config.suggest import SHORT
from factory.config.values import plain
from factory.verbs.import_config.said import Said, names_of, text_of

TABLE = Path(factory.config.__file__).with_name("llamafactory.yaml")
_INFERENCE = "it is of inference or of an export, which have verbs of their own here"  # a reason of the table
EXAM = "exam"  # a kind of run: the part of the table that is of `llamafactory-cli eval`
_NEAR = 0.8  # a letter or two of a name are wrong; half-alike names (0.5) may be a newer version's


@cache
def table() -> dict[str, Any]:
    return yaml_of(TABLE.read_text(encoding="utf-8"))


@cache
def _reasons() -> dict[str, str]:
    """Every key of LLaMA-Factory's that is known, and what is said of it where it has no entry of its own."""
    return dict.fromkeys((*table()["keys"], *table()["code"]), "") | _by_name("others") | _by_name("refused")


def _by_name(part: str) -> dict[str, str]:
    """Of a part of the table that has names by what is said of them."""
    return {name: why for why, names in table()[part].items() for name in names}


def _keys() -> dict[str, str]:
    """Ours by theirs, of those that have one."""
    entries = {name: entry if isinstance(entry, str) else entry.get("key") for name, entry in table()["keys"].items()}
    return {name: key for name, key in entries.items() if key}


@cache
def of_inference() -> frozenset[str]:
    """Keys of theirs that no training reads."""
    return frozenset(table()["others"][_INFERENCE])


@cache
def of_chat() -> frozenset[str]:
    """Keys of theirs that a conversation reads, or that are of inference alone."""
    own = table()["verbs"]["chat"]
    targets = {**_keys(), **{name: entry if isinstance(entry, str) else entry["key"] for name, entry in own.items()}}
    return of_inference() | {name for name, key in targets.items() if _read(key, "chat")}


def refuse_misspelt(given: Mapping[str, Any], file: Path, *, exam: bool) -> None:
    """Raises UserError for the names that are near one that LLaMA-Factory has; it takes no others itself."""
    known: Container[str] = {**_reasons(), **table()[EXAM]} if exam else _reasons()
    meant = {name: _meant(name) for name in given if name not in known}
    wrong = "LLaMA-Factory 0.9 has no such key"
    found = [
        refusal(
            "import-key",
            f"{name}={plain(given[name])}",
            wrong,
            because="the command would not say it, and train with the default of the key that was meant",
            fix=f"did you mean {near}? Correct it in {file}; of a newer version's key, delete the line",
        )
        for name, near in meant.items()
        if near
    ]
    if found:
        raise UserError(*found)


def _meant(name: str) -> str | None:
    """The key of LLaMA-Factory's that is called so here or in another tool, or that is spelt nearly so."""
    called = {key.rpartition(".")[2]: theirs for theirs, key in reversed(_keys().items())}
    same = called.get(SHORT.get(name.lower(), name).rpartition(".")[2])
    return same or next(iter(nearest(name.lower(), _reasons(), _NEAR)), None)


def unsaid(given: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """LLaMA-Factory's defaults where they are not ours."""
    found = {key: value for kind, own in table()["defaults"].items() if kind in kinds for key, value in own.items()}
    if text_of(given.get("max_steps", -1)) != "-1":
        found.pop("num_train_epochs", None)  # of a run that trains alone
    return {name: value for name, value in found.items() if name not in given}


def in_order(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """As they stand in the table: which of two keys is the first, a file's own order does not tell."""
    places = {name: place for place, name in enumerate(table()["keys"])}
    return sorted(given.items(), key=lambda item: places.get(item[0], len(places)))


def by_table(name: str, value: Any, said: Said, kinds: set[str]) -> None:
    """Says one key. `kinds`: what the table's `of` calls this run."""
    own = {**table()["verbs"].get(said.verb, {}), **(table()[EXAM] if EXAM in kinds else {})}
    entry = own.get(name) or table()["keys"].get(name)
    if isinstance(entry, str):
        entry = {"key": entry}
    if _unread(name, entry, said.verb):
        said.same[name] = table()["reads"][said.verb]["others"]
    elif entry is None:
        _without_entry(name, value, said)
    elif "key" not in entry:
        kind = said.same if "same" in entry else said.missing
        kind[name] = entry.get("same") or entry["none"]
    else:
        _by_entry(name, entry, value, said, kinds)


def _unread(name: str, entry: dict[str, Any] | None, verb: str) -> bool:
    """Whether the verb, which trains nothing, has no use for it."""
    if verb == "train":
        return False
    if entry is None:
        return name in table()["code"] or name in _by_name("refused")
    key = entry.get("key")
    return key is not None and not _read(key, verb)


def _read(key: str, verb: str) -> bool:
    """Whether the verb, which trains nothing, reads our key."""
    return any(f"{key}.".startswith(f"{read}.") for read in table()["reads"][verb]["keys"])


def _without_entry(name: str, value: Any, said: Said) -> None:
    why = _by_name("refused").get(name)
    if why is None:
        said.missing[name] = _reasons().get(name) or "it is not known here; `factory explain` lists the keys"
    else:
        _lost(name, value, why, said)


def _lost(name: str, value: Any, why: str, said: Said) -> None:
    """What makes another model where it is set."""
    if value in (False, 0, "", []):
        said.same[name] = "it is off, here as there"
    else:
        said.refuse(name, value, why, "take the line out of the file, to train without it")


def _by_entry(name: str, entry: dict[str, Any], value: Any, said: Said, kinds: set[str]) -> None:
    key = entry["key"]
    if "of" in entry and not kinds & set(entry["of"]):
        key = entry.get("else")
    if entry.get("list"):
        names = names_of(value)
        value = names if names != ["all"] else "all"
    values = entry.get("values")
    known = {text_of(each): ours for each, ours in (values or {}).items()}
    if key is None and (lost := kinds & entry.get("lost", {}).keys()):
        _lost(name, value, entry["lost"][min(lost)], said)
    elif key is None:
        said.missing[name] = entry.get("none") or _of_no_run(said)
    elif entry.get("list") and isinstance(value, list):
        said.add(key, value)
    elif values is None or (entry.get("others") and text_of(value) not in known):
        said.set(key, value)
    elif text_of(value) in known:
        _choose(name, key, text_of(known[text_of(value)]), said)
        if note := entry.get("note", {}).get(value):
            said.noted[name] = note
    else:
        _unknown(name, value, list(known), said, strict=entry.get("strict", False))


def _of_no_run(said: Said) -> str:
    """Of a key that is of another kind of run."""
    if said.verb != "train":
        return table()["reads"][said.verb]["others"]
    return f"neither stage={said.overrides['stage']} nor method={said.overrides['method']} reads it there"


def _unknown(name: str, value: Any, known: list[str], said: Said, *, strict: bool) -> None:
    wrong = f"{text_of(value)} is none of {', '.join(known)}"
    if strict:
        said.refuse(name, value, wrong, f"set {name} to one of these, or take the line out of the file")
    else:
        said.missing[name] = wrong


def _choose(name: str, key: str, value: str, said: Said) -> None:
    """Two keys of theirs may be one choice here: what is said first stays, but for `auto`, and the other is told."""
    first = said.overrides.get(key, "auto")
    if first == "auto":
        said.set(key, value)
    elif value not in ("auto", first):
        said.missing[name] = f"{key}={value} would take the place of {key}={first}, which the file says too"
