"""LLaMA-Factory's catalogue (dataset_info.json): its entries as sources of ours.

Its keys: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md. Four things are otherwise than there: a
standard column that the file has is read even where `columns` does not name it, a role that `tags` does not name keeps
its usual names, `num_samples` are at most so many rows: there a set of fewer gives some of them again, and blank lines
set a .txt file's documents apart: there each line is one.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from factory.config.parsed import NamedTwice, once
from factory.config.refusal import UserError, did_you_mean, refuse
from factory.config.settings import Format, Source
from factory.data import read

_catalogue_broken = partial(
    refuse, "catalogue-broken", because="it is an object of {name of a set: what it is}", fix="correct the file"
)

NAME = "dataset_info.json"
# where an entry's rows come from, in the order that counts, and why not
_ORIGINS: dict[str, tuple[str, str] | None] = {
    "hf_hub_url": None,
    "ms_hub_url": ("ModelScope", "give the set's id on the Hugging Face hub as hf_hub_url, or its file as file_name"),
    "om_hub_url": ("Openmind", "give the set's id on the Hugging Face hub as hf_hub_url, or its file as file_name"),
    "script_url": ("a loading script, code", "make it a function of your own: data=function data.path=module:function"),
    "cloud_file_name": ("a cloud's storage", "copy the file, and give its name as file_name"),
    "file_name": None,
}
_TYPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys([*_ORIGINS, "formatting", "subset", "split", "folder"], (str, "a text")),
    "ranking": (bool, "true or false"),
    "num_samples": (int, "a number"),
    **dict.fromkeys(["columns", "tags"], (dict, "an object of names")),
}
_HUB_KEYS = ("subset", "split", "folder")
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
_MEDIA = ("images", "videos", "audios")
_COMMON = {name: name for name in ("system", "tools", *_MEDIA, "chosen", "rejected")}
# our standard columns by the catalogue's names for them
_COLUMNS: dict[str, dict[str, str]] = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "kto_tag": "label",
        **_COMMON,
    },
    "sharegpt": {"messages": "conversations", "kto_tag": "label", **_COMMON},
    "openai": {"messages": "messages", "kto_tag": "label", **_COMMON},
}
_DEFAULTS: dict[str, dict[str, str]] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "conversations"},
}
# by formatting: of answers, of pairs
_FORMATS: dict[str, tuple[Format, Format]] = {
    "alpaca": ("alpaca", "alpaca_pairs"),
    "sharegpt": ("sharegpt", "sharegpt_pairs"),
    "openai": ("messages", "sharegpt_pairs"),
}


def sources(path: str, names: Sequence[str]) -> dict[str, Source]:
    """The named entries of a catalogue, given by its file or its folder. Raises UserError with all that is wrong."""
    file, entries = _read(path)
    known = ", ".join(entries)
    if not names:
        raise _catalogue_names("data.names=[]", "none of its sets is named", known=known, hint="")
    found: dict[str, Source] = {}
    problems: list[UserError] = []
    for name in names:
        try:
            if name in found:
                wrong = "it is named twice (data.sources.NAME.weight is for more of a set)"
                raise _catalogue_names(f"data.names={name}", wrong, known=known, hint="")
            if name not in entries:
                hint = did_you_mean(name, entries)
                raise _catalogue_names(f"data.names={name}", "there is no such set", known=known, hint=hint)
            found[name] = _Entry(file, name, entries[name]).source()
        except UserError as error:
            problems.append(error)
    if problems:
        raise UserError(*(refusal for problem in problems for refusal in problem.refusals))
    return found


def expand(selected: dict[str, Source], names: Sequence[str]) -> dict[str, Source]:
    """The selected sets, the named entries of a catalogue in its place, with what is set of these (`with_entries`)."""
    found: dict[str, Source] = {}
    set_of = _set_of(selected, names)
    for name, source in selected.items():
        if name in set_of:
            continue
        more = {name: source}
        if source.origin == "catalogue":
            if source.path is None:
                raise _catalogue_missing(read.unset(name), "no catalogue is named", hint="")
            more = {
                each: entry.model_copy(update=_changed(source, set_of.get(each, source)))
                for each, entry in sources(source.path, names).items()
            }
        if twice := found.keys() & more.keys():
            wrong = "another selected set has this name"
            raise _catalogue_names(f"data.names={min(twice)}", wrong, known=", ".join(more), hint="")
        found |= more
    return found


def with_entries(data: Any) -> Any:
    """The `data` of a composed tree in which a set that a catalogue names may say some keys alone, as its weight."""
    try:
        sets, names = dict(data["sources"]), set(data["names"])
        listed = next(keys for keys in sets.values() if keys.get("origin") == "catalogue")
        partial = {name: keys for name, keys in sets.items() if name in names and "origin" not in keys}
        return data | {"sources": sets | {name: listed | keys for name, keys in partial.items()}}
    except (KeyError, TypeError, StopIteration, ValueError):
        return data


def _set_of(selected: dict[str, Source], names: Sequence[str]) -> dict[str, Source]:
    """By the name of an entry what `with_entries` made of its keys: they follow the catalogue itself."""
    catalogues = [name for name, source in selected.items() if source.origin == "catalogue"]
    return {name: selected[name] for name in catalogues[1:] if name in names}


def _changed(source: Source, other: Source) -> dict[str, Any]:
    pairs = {name: (getattr(source, name), getattr(other, name)) for name in Source.model_fields}
    return {name: after for name, (before, after) in pairs.items() if before != after}


def _read(path: str) -> tuple[Path, dict[str, Any]]:
    file = Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises where there is no such user
    file = file / NAME if file.is_dir() else file
    if not file.is_file():
        raise _catalogue_missing(f"data.path={path}", "there is no such file", hint=read.near(file))
    try:
        entries = json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=once)
    except NamedTwice as error:
        raise _catalogue_broken(f"data.path={path}", f"an object in it {error}") from None
    except (ValueError, RecursionError) as error:
        raise _catalogue_broken(f"data.path={path}", f"it is not JSON ({error})") from None
    if not isinstance(entries, dict):
        raise _catalogue_broken(f"data.path={path}", "it is no JSON object")
    return file, entries


class _Entry:
    def __init__(self, file: Path, name: str, entry: Any):
        self.file = file
        self.name = name
        if not isinstance(entry, dict):
            raise _catalogue_broken(f"data.names={name}", "its entry is no object")
        self.entry = entry
        for key, value in entry.items():
            if key not in _TYPES:
                raise self._wrong(f"there is no key {key}", list(_TYPES), key)
            wanted, words = _TYPES[key]
            if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
                raise self._wrong(f"{key} is {json.dumps(value)[:60]}, not {words}", list(_TYPES))
        if self._get("num_samples") is not None and self._get("num_samples") < 1:
            raise self._wrong("num_samples is less than 1", [])
        self.formatting: str = self._get("formatting") or "alpaca"
        if self.formatting not in _COLUMNS:
            raise self._wrong(f"formatting is {self.formatting}", list(_COLUMNS), self.formatting)

    def source(self) -> Source:
        origin, path = self._origin()
        own = self._columns()
        columns = {_COLUMNS[self.formatting][key]: name for key, name in own.items()}
        format = self._format(own)
        if format == "text":
            columns = {"text": own["prompt"]}
        return Source(
            origin=origin,
            path=path,
            subset=self._get("subset"),
            split=self._get("split") or "train",
            revision=None,
            format=format,
            columns={standard: name for standard, name in columns.items() if standard != name},
            tags=self._names("tags", _TAGS),
            # the paths of its images start at the catalogue, wherever the set's own file is
            folder=str(self.file.parent) if origin == "file" and own.keys() & set(_MEDIA) else None,
            max_samples=self._get("num_samples"),
            weight=1.0,
            rows=None,
            license=None,
        )

    def _origin(self) -> tuple[Any, str]:
        key = next((key for key in _ORIGINS if self._get(key)), None)
        if key is None:
            raise self._wrong("it says nothing of where its rows are", list(_ORIGINS))
        if unread := _ORIGINS[key]:
            where, instead = unread
            raise refuse(
                "catalogue-origin",
                f"data.names={self.name}",
                f"it has {key}",
                because=f"its rows come from {where}, which is not read here",
                fix=instead,
            )
        place: str = self._get(key)
        if key == "hf_hub_url":
            return "hub", f"{place}/{folder}" if (folder := self._get("folder")) else place
        for hub_key in _HUB_KEYS:
            if self._get(hub_key) not in (None, "train"):
                raise self._wrong(f"{hub_key} says which part of a hub's set is read, and this is a file", [])
        return "file", str(self.file.parent / place)

    def _columns(self) -> dict[str, str]:
        """{catalogue's column: the set's own}. Where any is named, those that are not are not there."""
        known = tuple({key: None for columns in _COLUMNS.values() for key in columns})
        own = self._names("columns", known) if self._get("columns") else _DEFAULTS[self.formatting]
        unread = own.keys() - _COLUMNS[self.formatting].keys()
        if unread:
            raise self._wrong(f"{self.formatting} has no {min(unread)}", list(_COLUMNS[self.formatting]), min(unread))
        return own

    def _format(self, own: dict[str, str]) -> Format:
        needed = next(iter(_DEFAULTS[self.formatting]))
        plain, pairs = _FORMATS[self.formatting]
        if needed not in own:
            raise self._wrong(f"its columns do not say which one is the {needed}", list(_COLUMNS[self.formatting]))
        if self._get("ranking"):
            if not {"chosen", "rejected"} <= own.keys():
                raise self._wrong("it is of pairs, and its columns do not name chosen and rejected", list(own))
            return pairs
        if self.formatting == "alpaca" and "response" not in own:
            if len(own) > 1:
                raise self._wrong("its columns do not say which one is the response", list(_COLUMNS[self.formatting]))
            return "text"
        return "kto" if "kto_tag" in own else plain

    def _names(self, key: str, known: Sequence[str]) -> dict[str, str]:
        names: dict[str, Any] = self._get(key) or {}
        for name, value in names.items():
            if name not in known:
                raise self._wrong(f"{key} has no {name}", list(known), name)
            if not isinstance(value, str | None):
                raise self._wrong(f"{key}.{name} is {json.dumps(value)[:60]}, not a text", list(known))
        return {name: value for name, value in names.items() if value is not None}

    def _get(self, key: str) -> Any:
        return self.entry.get(key)

    def _wrong(self, wrong: str, known: Sequence[str], name: str = "") -> UserError:
        hint = did_you_mean(name, known) if name else ""
        words = f"it may have {', '.join(known)}" if known else f"without {wrong.partition(' ')[0]}"
        return refuse(
            "catalogue-key",
            f"data.names={self.name}",
            wrong,
            because="it would be ignored, and other rows or other columns of them trained",
            fix=f"{hint}correct the entry in the catalogue ({words})",
        )


def _catalogue_names(setting: str, wrong: str, known: str, hint: str) -> UserError:
    return refuse(
        "catalogue-names",
        setting,
        wrong,
        because=f"the catalogue has {known}",
        fix=f"{hint}set data.names=[NAME,…] to some of them",
    )


def _catalogue_missing(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "catalogue-missing",
        setting,
        wrong,
        because="LLaMA-Factory describes its data sets in a dataset_info.json",
        fix=f"{hint}set data.path to that file or its folder",
    )
