"""What takes more than one key to tell, of the rows: which sets, how many of each, what is held out, packing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from factory.config.parsed import json_of
from factory.data.record import MEDIA
from factory.verbs.import_config.said import IN_A_KEY, Said, names_of, text_of

_NO_SET = "the file names no data set; add data.names=[NAME], or in the place of data another"
_NO_ROWS = 1e-6  # a val_size up to this one holds out nothing there


def _data(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    names, held = (_named(given, key) for key in ("dataset", "eval_dataset"))
    # a set that is held out whole does not train
    apart = [name for name in held if name not in names][:1]
    if not names:  # so that the command is refused, and does not train on the demonstration's rows
        said.missing["dataset"] = _NO_SET
    if apart:
        said.set("data.validation", apart[0])
    else:
        _held_out(0 if held else given.get("val_size", 0), said)
    if held != apart:
        said.missing["eval_dataset"] = "one set is held out whole (data.validation), which does not train"
    _weights(given, names, said)
    yield from _of_catalogue(given, [*names, *apart], said, listed=bool(names))
    yield from ("dataset", "eval_dataset", "val_size", "interleave_probs")


def measured(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    """Of what is evaluated: all rows of eval_dataset, or those that val_size holds out of dataset."""
    names, held = (_named(given, key) for key in ("dataset", "eval_dataset"))
    if not (names or held):
        said.missing["eval_dataset"] = _NO_SET
    if held and names:
        said.same["dataset"] = "nothing is trained, and what is measured is eval_dataset"
    if held or not given.get("val_size"):
        said.set("evaluate.rows", "train")
        said.set("data.validation_fraction", 0)
        said.noted["eval_dataset"] = "evaluate.rows=train measures all rows of the sets that are named, and trains none"
    else:
        _held_out(given["val_size"], said)
    yield from _of_catalogue(given, held or names, said, listed=True)
    yield from ("dataset", "eval_dataset", "val_size", "interleave_probs", "packing", "neat_packing")


def _named(given: Mapping[str, Any], key: str) -> list[str]:
    return list(filter(None, names_of(given.get(key))))


def _of_catalogue(given: Mapping[str, Any], names: list[str], said: Said, *, listed: bool) -> Iterator[str]:
    """The sets as LLaMA-Factory's catalogue has them, how many rows of each, and what becomes of those too long."""
    file = Path(text_of(given.get("dataset_dir", "data"))) / "dataset_info.json"
    said.set("data", "llamafactory")
    said.set("data.path", file)
    if names and listed:
        said.set("data.names", names)
    if said.overrides["stage"] != "pt":
        said.set("data.truncation", "keep_response")
        said.noted["cutoff_len"] = (
            "data.truncation=keep_response drops a row without room for its answer, there it is cut"
        )
    elif given.get("packing") is False:
        said.set("data.truncation", "right")
    entries = _entries(file, names)
    _first(given, names, _num_samples(entries), said)
    _media(given, entries, said)
    if texts := [name for name, entry in entries.items() if text_of(entry.get("file_name")).endswith(".txt")]:
        said.noted["dataset"] = f"{', '.join(texts)}: blank lines set documents apart; there each line is one"
    yield from ("dataset_dir", "max_samples", "media_dir", "image_dir")


def _media(given: Mapping[str, Any], entries: dict[str, dict[str, Any]], said: Said) -> None:
    """Where paths of images, videos and sounds start: at the catalogue, where nothing is said, here as there."""
    files = {name: entry for name, entry in entries.items() if entry.get("file_name") and not entry.get("hf_hub_url")}
    shown = {name: _columns(entry) & set(MEDIA) for name, entry in files.items()}
    names = [name for name, columns in shown.items() if columns]
    folder = next((key for key in ("media_dir", "image_dir") if given.get(key) is not None), None)
    if folder and names and all(map(IN_A_KEY.fullmatch, names)):
        for name in names:
            said.set(f"+data.sources.{name}.folder", given[folder])
    elif folder:
        why = "a name of these sets is no part of a key" if names else "none of these sets is a file that names media"
        said.missing[folder] = f"{why} (data.sources.NAME.folder)"
    if any("images" in _columns(entry) for entry in entries.values()) and "image_max_pixels" not in given:
        said.noted["image_max_pixels"] = (
            "images keep the sizes of the model's own processor; there those of more than 768 x 768 pixels lose some"
        )


def _columns(entry: dict[str, Any]) -> set[str]:
    columns = entry.get("columns")
    return set(columns) if isinstance(columns, dict) else set()


def _held_out(size: Any, said: Said) -> None:
    """val_size is a share, or from 1 on a number of rows: 1 itself where it is written without a point."""
    if not isinstance(size, int | float) or isinstance(size, bool):
        said.missing["val_size"] = f"{text_of(size)} is neither a share nor a number of rows"
    elif size <= _NO_ROWS:
        said.set("data.validation_fraction", 0)
    elif size < 1:
        said.set("data.validation_fraction", size)
        said.noted["val_size"] = "data.validation_fraction holds out 200 rows at most"
    else:
        said.missing["val_size"] = (
            f"{size} rows there; here it is a share, and its default where none is said, of 200 rows at most: set "
            f"data.validation_fraction to {size} divided by the number of rows"
        )


def _entries(file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Of the catalogue, those that are named; what is wrong with it is told when it is planned."""
    try:
        entries = json_of(file.read_text(encoding="utf-8-sig"))
        found = {name: entries[name] for name in names if name in entries}
    except (OSError, ValueError, TypeError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def _num_samples(entries: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Of the sets that say how many rows they give."""
    given = {name: entry.get("num_samples") for name, entry in entries.items()}
    return {name: count for name, count in given.items() if isinstance(count, int)}


def _first(given: Mapping[str, Any], names: list[str], counts: dict[str, int], said: Said) -> None:
    """max_samples is of each set, after the set's own num_samples."""
    if counts:
        said.noted["num_samples"] = (
            f"{', '.join(counts)}: at most so many rows; there a set of fewer gives some again until there are as many "
            "(data.sources.NAME.weight says how often rows train), and data that streams is read to its end"
        )
    most = given.get("max_samples")
    if most is None:
        return
    if all(map(IN_A_KEY.fullmatch, names)):
        for name in names:
            own = counts.get(name)
            said.set(f"+data.sources.{name}.max_samples", min(most, own) if own and isinstance(most, int) else most)
        said.noted["max_samples"] = "rows are drawn by seed; there the first ones are taken"
    else:
        said.missing["max_samples"] = "a name of these sets is no part of a key (data.sources.NAME.max_samples)"


def _weights(given: Mapping[str, Any], names: list[str], said: Said) -> None:
    shares, mixing = names_of(given.get("interleave_probs")), text_of(given.get("mix_strategy", "concat"))
    if shares and not mixing.startswith("interleave"):
        said.missing["interleave_probs"] = f"mix_strategy={mixing} draws nothing"
    elif len(shares) == len(names) and all(map(IN_A_KEY.fullmatch, names)):
        for name, share in zip(names, shares, strict=True):
            said.set(f"+data.sources.{name}.weight", share)
    elif len(shares) == len(names):
        said.missing["interleave_probs"] = "a name of these sets is no part of a key (data.sources.NAME.weight)"
    elif shares:
        said.missing["interleave_probs"] = f"{len(shares)} shares are not one for each of {len(names)} sets"
    elif mixing.startswith("interleave") and len(names) > 1:
        said.noted["mix_strategy"] = (
            "each row's set is drawn, all as likely (data.sources.NAME.weight); without interleave_probs the sets take "
            "turns there, so that as many rows come of each"
        )


def _packing(given: Mapping[str, Any], said: Said, file: Path) -> Iterator[str]:
    stage, apart = said.overrides["stage"], bool(given.get("neat_packing"))
    if apart and stage == "pt":
        said.same["neat_packing"] = "it is of sft alone there; packed documents of pt see each other, here as there"
        apart = False
    packed = apart or given.get("packing")
    if stage not in ("pt", "sft"):
        if packed:
            said.same["packing"] = f"stage={stage} packs nothing, here as there"
    elif packed is not None:
        said.set("data.packing", packed)
        if apart:
            said.set("data.isolate_documents", True)
        elif packed and stage == "sft":
            said.noted["packing"] = "documents do not see each other, unless data.isolate_documents=false, as there"
    yield from ("packing", "neat_packing")


ALL = _data, _packing
