"""Shared libraries, made by this machine's compiler: the kernels, one for each type of numbers, and the heap.

They are made once and stay in the cache folder, under a name that changes with all that they are made of. No torch.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

from factory import cache
from factory.look import cpu
from factory.native import LARGE, MOST_RANKS, UNIT

NUMBERS = {"bfloat16": "NUMBER_BF16", "float32": "NUMBER_FLOAT"}
_FOLDER = Path(__file__).parent
_KERNELS = (
    *("-std=gnu11", "-O3", "-fopenmp", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-freciprocal-math"),  # nothing that takes a NaN for impossible
)
_OWN_PROCESSOR = {
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
}
_HEADERS = ("numbers.h",)
_HEAP = "heap"
_FOR_HEAP = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fno-builtin", f"-DLARGE={LARGE}", f"-DUNIT={UNIT}")


class NotBuiltError(Exception):
    """Why there are none here: what the compiler said, in a line."""


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
            kernels(number)
        heap()
    except NotBuiltError as error:
        return str(error)
    return None


def kernels(number: str) -> Path:
    """Those for one of `NUMBERS`, made if they are not there. Raises NotBuiltError."""
    own = _OWN_PROCESSOR.get(platform.machine(), ())
    flags = (*_KERNELS, *own, f"-D{NUMBERS[number]}", f"-DMOST_RANKS={MOST_RANKS}")
    return _library(number, ("kernels.c", "attention.c", "few.c", "shared.c"), flags, ["-lm"])


def attends(number: str) -> bool:
    """Whether attention is among them: with AVX-512, or for float32 with AVX2. Raises NotBuiltError."""
    return b"attend_back" in kernels(number).read_bytes()


def heap() -> Path:
    """To be preloaded (LD_PRELOAD), made if it is not there. Raises NotBuiltError."""
    file = _library(_HEAP, ("heap.c",), _FOR_HEAP, ["-Wl,-z,defs", "-lpthread", "-ldl"], _try_preloaded)
    if set(str(file)) & set(": $\t\n"):  # they part libraries there
        raise NotBuiltError(f"{file.parent} has a space, a colon or a $ in it: set FACTORY_CACHE to another folder")
    return file


def is_heap(path: str) -> bool:
    """Whether it is what `heap` makes, of this version or another."""
    return Path(path).parent == _made() and Path(path).name.startswith(f"{_HEAP}-")


def _made() -> Path:
    return cache.folder() / "native"


def _library(
    name: str,
    sources: tuple[str, ...],
    flags: tuple[str, ...],
    beside: list[str],
    tried: Callable[[Path], None] = lambda _: None,
) -> Path:
    command = compiler()
    if command is None:
        raise NotBuiltError("there is no C compiler ($CC, or cc) on a Linux of x86_64 or aarch64")
    seen, system = Path(command[0]).resolve().stat(), (cpu.name(), cpu.features(), platform.libc_ver())
    texts = [(_FOLDER / each).read_text() for each in (*sources, *_HEADERS)]
    made_of = (texts, command, seen.st_size, seen.st_mtime_ns, flags, system)
    file = _made() / f"{name}-{blake2b(repr(made_of).encode(), digest_size=8).hexdigest()}.so"
    try:
        if not file.is_file() or not file.stat().st_size:  # as a machine that loses its power may leave it
            compiles = [[*command, *flags, "-c", str(_FOLDER / source)] for source in sources]
            _make(compiles, [*command, "-shared"], beside, file, tried)
        barred = os.statvfs(file).f_flag & os.ST_NOEXEC
    except OSError as error:
        raise NotBuiltError(f"{file.parent}: {error.strerror or error}") from error
    if barred:
        raise NotBuiltError(
            f"{file.parent} is on a disk without programs (noexec): set FACTORY_CACHE to another folder"
        )
    return file


def _make(
    compiles: list[list[str]], links: list[str], beside: list[str], file: Path, tried: Callable[[Path], None]
) -> None:
    """What the kernels' threads need is left open: it is torch's that answers, which is there first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:  # whoever makes it meanwhile puts the same in its place
        made, halves = Path(folder) / file.name, [str(Path(folder) / f"{number}.o") for number in range(len(compiles))]
        for each, half in zip(compiles, halves, strict=True):
            _run([*each, "-o", half])
        _run([*links, *halves, "-o", str(made), *beside])
        tried(made)
        made.replace(file)


def _try_preloaded(library: Path) -> None:
    """As the training process will be started: it would end there where the compiler is of a newer C library."""
    _run([sys.executable, "-I", "-S", "-c", ""], {**os.environ, "LD_PRELOAD": str(library)})


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(  # noqa: S603  the user's own compiler, and this program
        command, capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise NotBuiltError(f"{Path(command[0]).name} ended with {done.returncode}: {said}")
