"""The processor, as the system describes it."""

import platform
from pathlib import Path


def has_bf16() -> bool:
    """Whether it multiplies bfloat16 natively; without, float32 is faster (docs/measurements.md)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(features().split()))


def features() -> str:
    """The names of what it can do beyond its kind."""
    return _of_first_core("flags", "Features")


def name() -> str:
    return _of_first_core("model name") or platform.processor() or platform.machine()


def _of_first_core(*names: str) -> str:
    """What the system says of it by the first of these names; nothing where it does not."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            line = next((line for line in file if line.startswith(names)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()
