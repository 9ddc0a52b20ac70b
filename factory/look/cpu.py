"""The processor, as the system describes it."""

import platform
from pathlib import Path


def has_bf16() -> bool:
    """Whether it multiplies bfloat16 natively; without, float32 is faster (docs/measurements.md)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(features().split()))


def multiplies_wide() -> bool:
    """Whether it multiplies float32 faster than bfloat16.

    It does where it has no instructions for that; and Intel's are half as fast as those for float32 where the tiles
    beside them (AMX) are hidden, as from a virtual machine (docs/measurements.md).
    """
    found = set(features().split())
    hidden = "avx512_fp16" in found and "amx_bf16" not in found and vendor() == "GenuineIntel"
    return hidden or not has_bf16()


def features() -> str:
    """The names of what it can do beyond its kind."""
    return _of_first_core("flags", "Features")


def vendor() -> str:
    return _of_first_core("vendor_id")


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
