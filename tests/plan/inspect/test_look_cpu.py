"""What the system says of a processor, and what is taken from it."""

from pathlib import Path
from typing import Any

import pytest

from factory.plan.inspect import cpu

SAYS = "processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: {vendor} {flags}\nflags\t\t: fpu avx2 {flags}\n\n"
# by its maker and what it can do: whether it has bfloat16
KINDS = {
    ("GenuineIntel", "avx512_bf16 avx512_fp16 amx_bf16 amx_tile"): True,
    ("AuthenticAMD", "avx512_bf16"): True,
    ("GenuineIntel", "avx512f"): False,
}


@pytest.mark.parametrize(("vendor", "flags"), KINDS)
def test_whether_it_has_bfloat16(vendor: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(SAYS.format(vendor=vendor, flags=flags))
    opened: Any = Path.open
    monkeypatch.setattr(Path, "open", lambda _, *given: opened(tmp_path / "cpuinfo", *given))
    assert cpu.has_bf16() == KINDS[vendor, flags]
    assert cpu.name() == f"{vendor} {flags}"


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "open", missing)
    assert not cpu.has_bf16()
