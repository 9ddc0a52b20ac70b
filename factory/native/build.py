"""The kernels as shared libraries, one for each type of numbers, made by this machine's compiler for its processor.

They are made once and stay in the cache folder, under a name that changes with all that they are made of. No torch.
"""

import os
import platform
import shlex
import shutil
import subprocess
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

from factory import cache
from factory.look import cpu

NUMBERS = {"bfloat16": "NUMBER_BF16", "float32": "NUMBER_FLOAT"}
_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    *("-std=gnu11", "-O3", "-fopenmp", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-freciprocal-math"),  # nothing that takes a NaN for impossible
)
_OWN_PROCESSOR = {
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
}


class NotBuiltError(Exception):
    """Why there are no kernels here: what the compiler said, in a line."""


def compiler() -> list[str] | None:
    """$CC, or cc, on a Linux, whose torch has the threads of GNU's OpenMP as it does; None: there is none."""
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError:  # an open quotation mark
        return None
    path = shutil.which(command[0]) if platform.system() == "Linux" and platform.machine() in _OWN_PROCESSOR else None
    return None if path is None else [path, *command[1:]]


def why_not() -> str | None:
    """Makes all of them, if they are not there; what is in the way of that, or None."""
    try:
        for number in NUMBERS:
            library(number)
    except NotBuiltError as error:
        return str(error)
    return None


def library(number: str) -> Path:
    """The library for one of `NUMBERS`, made if it is not there. Raises NotBuiltError."""
    command = compiler()
    if command is None:
        raise NotBuiltError("there is no C compiler ($CC, or cc) on a Linux of x86_64 or aarch64")
    flags = (*_FLAGS, *_OWN_PROCESSOR[platform.machine()], f"-D{NUMBERS[number]}")
    seen = Path(command[0]).resolve().stat()
    made_of = (_SOURCE.read_text(), command, seen.st_size, seen.st_mtime_ns, flags, cpu.name(), cpu.features())
    file = cache.folder() / "native" / f"{number}-{blake2b(repr(made_of).encode(), digest_size=8).hexdigest()}.so"
    if not file.is_file():
        _make([*command, *flags], [*command, "-shared"], file)
    if os.statvfs(file).f_flag & os.ST_NOEXEC:
        raise NotBuiltError(
            f"{file.parent} is on a disk without programs (noexec): set FACTORY_CACHE to another folder"
        )
    return file


def _make(compiles: list[str], links: list[str], file: Path) -> None:
    """What threads need is left open: it is torch's that answers, which is there first."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as folder:  # whoever makes it meanwhile puts the same in its place
            half, made = Path(folder) / "kernels.o", Path(folder) / file.name
            for command in (
                [*compiles, "-c", str(_SOURCE), "-o", str(half)],
                [*links, str(half), "-o", str(made), "-lm"],
            ):
                _run(command)
            made.replace(file)
    except OSError as error:
        raise NotBuiltError(f"{file.parent}: {error.strerror or error}") from error


def _run(command: list[str]) -> None:
    done = subprocess.run(  # noqa: S603  the user's own compiler
        command, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise NotBuiltError(f"{Path(command[0]).name} ended with {done.returncode}: {said}")
