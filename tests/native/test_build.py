"""The kernels are made once, for this machine; where they cannot be, that is said and nothing is left."""

import errno
import os
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factory.look import cpu
from factory.native import build
from factory.refusal import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def made(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "native").iterdir())


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_they_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.why_not() is None
    files = made(tmp_path)
    assert [name.split("-")[0] for name in files] == ["bfloat16", "float32", "heap"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("made again"))
    assert build.why_not() is None
    assert made(tmp_path) == files


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_a_cache_without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made there, they could not be loaded."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert "noexec): set FACTORY_CACHE to another folder" in str(build.why_not())


def test_what_the_compiler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path / "cc", 'echo "omp.h: fatal error: no such file" >&2; exit 3'))
    assert build.why_not() == "cc ended with 3: omp.h: fatal error: no such file"
    assert made(tmp_path) == []


def test_another_compiler_makes_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'while [ "$1" != -o ]; do shift; done; echo "$0" > "$2"'
    for name in ("one", "other"):
        monkeypatch.setenv("CC", compiler(tmp_path / name, script))
        assert build.why_not() is None
    assert len(made(tmp_path)) == 6


@pytest.mark.parametrize("asked", ["no-such-compiler", "gcc 'open"])
def test_no_compiler(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", asked)
    assert "no C compiler" in str(build.why_not())


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_what_no_process_would_start_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a compiler whose C library is newer than the system's."""
    (tmp_path / "dies.h").write_text("void _exit(int); __attribute__((constructor)) static void dies(void) {_exit(7);}")
    monkeypatch.setenv("CC", f"cc -include {tmp_path / 'dies.h'}")
    with pytest.raises(build.NotBuiltError, match="ended with 7"):
        build.heap()
    assert made(tmp_path) == []


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_a_home_that_systems_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.heap()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.17"))
    build.heap()
    assert len(made(tmp_path)) == 2


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_what_was_left_empty_is_made_again() -> None:
    whole = build.heap().read_bytes()
    build.heap().write_bytes(b"")
    assert build.heap().read_bytes() == whole


@pytest.mark.parametrize("asked", [(Path, "is_file"), (os, "statvfs")], ids=["is_file", "statvfs"])
@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_a_cache_of_somebody_else(asked: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one that is cleared meanwhile: no traceback."""

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(*asked, refused)
        said = build.why_not()
    assert "cache/native: Permission denied" in str(said)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("CC", compiler(tmp_path / "cc", "exit 0"))
    assert "cache/native: Not a directory" in str(build.why_not())


def test_a_run_that_cannot_make_them_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that goes on where its plan was not made."""
    from factory.native import kernels

    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match=r"native-kernels.*no C compiler(?s:.*)compute.kernels=fused"):
        kernels.use(True)
    monkeypatch.setenv("CC", compiler(tmp_path / "cc", 'while [ "$1" != -o ]; do shift; done; echo no > "$2"'))
    with pytest.raises(UserError, match="native-kernels"):  # what it made is no library
        kernels.use(True)
    assert not kernels.used()


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(("number", "needed"), [("float32", {"avx2", "fma"}), ("bfloat16", {"avx512_bf16"})])
def test_attention_is_among_them_where_the_processor_has_its_instructions(number: str, needed: set[str]) -> None:
    """Its own tests are skipped where it is not."""
    assert build.attends(number) == (needed <= set(cpu.features().split()))
