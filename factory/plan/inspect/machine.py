"""The machine: cores, memory, cards, and the packages that a run may need."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

from factory.plan.facts import Gpu, Machine
from factory.plan.inspect import cgroup, cpu
from factory.plan.packages import PACKAGES

_DEVICES = Path("/dev")
_KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")  # of AMD's driver: CPUs and cards
_DRM = Path("/sys/class/drm")
_CAPABILITIES = Path("/proc/driver/nvidia/capabilities")  # of NVIDIA's driver: the instances of divided cards
_CARD_MEMORY = (1, 2)  # its heap types of a card's own memory, seen by the CPU and not


def look_at_machine() -> Machine:
    import psutil

    memory = psutil.virtual_memory()
    granted, limit = cgroup.free(), cgroup.limit()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    available = memory.available if granted is None else min(memory.available, granted)
    whole = memory.total if limit is None else min(memory.total, limit)
    asked, (gpus, unread) = os.environ.get("OMP_NUM_THREADS", ""), _gpus(whole, available)
    return Machine(
        threads=int(asked) if asked.isdigit() and int(asked) else cores,
        available_bytes=available,
        cpu_bf16=cpu.has_bf16(),
        gpus=gpus,
        packages=_packages(),
        hub_token=_has_hub_token(),
        cpu=cpu.name(),
        hidden=None if gpus else os.environ.get(_VISIBLE),
        memory_bytes=whole,
        unread=unread,
    )


def _has_hub_token() -> bool:
    """Where huggingface_hub looks for one: the environment, or the file that `hf auth login` writes."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return bool(named) or Path(os.path.expanduser(file)).is_file()  # noqa: PTH111  Path.expanduser may raise


def installed_version(package: str) -> str | None:
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    # the line alone: a description of many pages, parsed as a message, would take a quarter of a plan's time
    line = re.search(r"^Version: (.+)$", found.read_text("METADATA") or "", re.MULTILINE)
    return line[1].strip() if line else found.version


def _packages() -> dict[str, str]:
    """With what torch was built for: `rocm`, where its cuda devices are AMD cards, or `cuda`, by their versions."""
    found = {name: version for name in PACKAGES if (version := installed_version(name))}
    built = {"rocm": _built_for("hip"), "cuda": _built_for("cuda")}
    return found | {name: version for name, version in built.items() if version}


def _built_for(name: str) -> str | None:
    """What torch's version.py says of it: torch itself takes a second to import."""
    torch = util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    try:
        text = Path(torch.origin).with_name("version.py").read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}\b.*= *['\"](.+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _gpus(whole: int, available: int) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The cards that torch would see, and what is said of those that cannot be read.

    None where it is a CPU build, or where the driver does not answer. `whole` and `available` are the machine's memory
    in bytes: that of a card which has none of its own.
    """
    if (installed_version("torch") or "").endswith("+cpu"):
        return (), ()
    return (_amd(), ()) if _built_for("hip") else _nvidia(whole, available)


def _nvidia(whole: int, available: int) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order, and nvidia-smi's lines of which no card can be made.

    Without it all, or the first instance of a divided card: CUDA takes no card beside one, nor a second (MIG user
    guide, CUDA device enumeration).
    """
    visible = os.environ.get(_VISIBLE)
    if visible in ("", "-1"):
        return (), ()
    found, unread = dict[str, Gpu](), list[str]()
    for told in of_nvidia("uuid,name,memory.total,memory.free,compute_cap"):
        try:
            uuid, name, mib, free, capability = told
            found[uuid] = _card(name, mib, free, capability, whole, available)
        except ValueError:  # fewer values than were asked for, or a word in a number's place
            unread.append(", ".join(told))
    if visible is None:
        divided = any(_CAPABILITIES.glob("gpu*/mig/gi*"))  # asked of the driver's files, which costs nothing
        return tuple(_parts(found).values() if divided else ())[:1] or tuple(found.values()), tuple(unread)
    parts = _parts(found) if _PART in visible else {}
    return tuple(_visible(found, parts, [word.strip() for word in visible.split(",")])), tuple(unread)


def _card(name: str, mib: str, free: str, capability: str, whole: int, available: int) -> Gpu:
    """One with no memory of its own, as the GB10's, has the machine's. Raises ValueError where a number is missing."""
    shares = mib in _NO_MEMORY
    left = available if shares else int(free) * 2**20 if free.isdigit() else None
    return Gpu(
        name=name,
        memory_bytes=whole if shares else int(mib) * 2**20,
        compute_capability=float(capability),
        free_bytes=left,
    )


def of_nvidia(asked: str) -> list[list[str]]:
    """What nvidia-smi says of each card; nothing where it is not there, or where the driver does not answer."""
    return [line.split(", ") for line in _nvidia_smi(f"--query-gpu={asked}", "--format=csv,noheader,nounits")]


def _nvidia_smi(*asked: str) -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", *asked]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603  a fixed query
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _parts(cards: dict[str, Gpu]) -> dict[str, Gpu]:
    """The instances that cards are divided into (MIG), by their own UUIDs, called as torch calls them.

    A profile says how much memory it has, in whole GB: no query of nvidia-smi tells it of one instance.
    """
    found, card = dict[str, Gpu](), None
    for line in _nvidia_smi("-L"):
        if of_card := _OF_CARD.search(line):
            card = cards.get(of_card[1])
        elif card and (part := _OF_PART.search(line)):
            profile, size, uuid = part.groups()
            name, memory = f"{card.name} MIG {profile}", int(size) * 10**9
            found[uuid] = replace(card, name=name, memory_bytes=memory, free_bytes=None)
    return found


_NO_MEMORY = ("[N/A]", "[Not Supported]")  # nvidia-smi's words for what a card has not; of a faulty one it has others
_VISIBLE, _PART = "CUDA_VISIBLE_DEVICES", "MIG-"
_OF_CARD, _OF_PART = re.compile(r"^GPU \d+: .*\(UUID: (.+)\)"), re.compile(r"MIG (\S*?(\d+)gb\S*) .*\(UUID: (.+)\)")


def _visible(cards: dict[str, Gpu], parts: dict[str, Gpu], words: list[str]) -> Iterator[Gpu]:
    """By their numbers or the beginnings of their UUIDs; what names no card ends the list, as in CUDA itself.

    So does a part of one: a process computes on no other beside it.
    """
    every = list(cards.values())
    for word in words:
        named = [card for uuid, card in (cards | parts).items() if word and uuid.startswith(word)]
        number = int(word) if word.isdigit() else len(every)
        if number < len(every):
            named = [every[number]]
        if len(named) != 1:
            return
        yield named[0]
        if word.startswith(_PART):
            return


def _amd() -> tuple[Gpu, ...]:
    """By what the driver says of its nodes, which needs no tool of ROCm. Of a gfx942 torch says capability 9.4."""
    hidden = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")) in ("", "-1")
    if hidden or not _opens(_DEVICES / "kfd"):
        return ()
    found = []
    for node in sorted(_KFD_NODES.glob("[0-9]*"), key=lambda node: int(node.name)):
        own = _properties(node / "properties")
        version = own.get("gfx_target_version", 0)  # 0 of a CPU
        if not version or not _opens(_DEVICES / "dri" / f"renderD{own.get('drm_render_minor')}"):
            continue
        major, minor, step = version // 10_000, version // 100 % 100, version % 100
        banks = [_properties(file) for file in node.glob("mem_banks/*/properties")]
        whole = sum(bank["size_in_bytes"] for bank in banks if bank.get("heap_type") in _CARD_MEMORY)
        used = _used(own.get("drm_render_minor"))
        found.append(
            Gpu(
                name=f"AMD gfx{major}{minor:x}{step:x}",
                memory_bytes=whole,
                compute_capability=float(f"{major}.{minor}"),
                free_bytes=None if used is None else whole - used,
            )
        )
    return tuple(found)


def _used(minor: int | None) -> int | None:
    """Bytes of a card's own memory that are taken; None where the driver does not say."""
    try:
        return int((_DRM / f"renderD{minor}" / "device" / "mem_info_vram_used").read_text())
    except (OSError, ValueError):
        return None


def _opens(device: Path) -> bool:
    """Whether this user may: a container is given some of the cards that the driver knows."""
    return os.access(device, os.R_OK | os.W_OK)


def _properties(file: Path) -> dict[str, int]:
    """None of a node that this process may not read."""
    try:
        return cgroup.numbers(file.read_text())
    except OSError:
        return {}
