"""What libraries are told as they are imported, in place of finding it out (docs/measurements.md).

transformers looks through some 1,700 files of its own for the names that they export: 0.5 s of CPU time at each start,
for what is the same until it is installed anew. And what tensors on several machines and attention that is compiled
take is imported wherever torch has it, sympy with it: 0.5 s more and 50 MiB. The 1,200 patterns of all models' files
are not compiled for one model: 0.05 s.
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from factory import cache
from factory.refusal import UserError
from factory.run.folder import write_whole

_TRANSFORMERS = "transformers.utils.import_utils"
_WEIGHTS = "transformers.core_model_loading"
# by who is asked, what is there for ranks and for attention that is compiled
_FOR_OTHERS = {
    _TRANSFORMERS: ("is_torch_distributed_available", "is_torch_flex_attn_available"),
    "accelerate.utils.imports": ("is_torch_distributed_available",),
}

Exported = dict[frozenset[str], dict[str, set[str]]]  # by the libraries that a name needs, of a module, its names


@contextmanager
def telling(*, alone: bool) -> Iterator[None]:
    """Meanwhile what is imported is told. `alone`: for a process that is no rank and compiles nothing."""
    finder = _Changing(partial(_tell, alone=alone))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Changing(MetaPathFinder):
    """Finds these modules as the others do, and changes each when it was executed."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change, self.left = change, {*_FOR_OTHERS, _WEIGHTS}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.left:
            return None
        self.left.remove(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def changed(module: Any) -> None:
                execute(module)
                self.change(module)

            spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


def _tell(module: Any, *, alone: bool) -> None:
    for name in _FOR_OTHERS.get(module.__name__, ()) if alone else ():
        if hasattr(module, name):
            setattr(module, name, lambda: False)
    if hasattr(module, "define_import_structure"):
        _remember_exported(module)
    if module.__name__ == _WEIGHTS and hasattr(module, "re"):
        module.re = _Patterns()


class _Patterns:
    """`re`, for who compiles every model's patterns and asks those of one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    def compile(self, *given: Any) -> "_Pattern":
        return _Pattern(given)


class _Pattern:
    """Compiled when it is asked for something. A copy is a pattern of `re`."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        return getattr(re.compile(*self._given), name)


def _remember_exported(module: Any) -> None:
    find: Callable[..., Exported] = module.define_import_structure

    def define(module_path: str | Path, prefix: str | None = None) -> Exported:
        folder = Path(module_path)
        folder = folder if folder.is_dir() else folder.parent
        if folder.name != "models":  # one model's few files
            return find(module_path, prefix)
        try:
            kept = cache.folder() / "transformers" / f"{_state(folder)[:12]}.json"
        except OSError:  # a file that is none, as an editor leaves one, or an archive
            return find(module_path, prefix)
        with suppress(OSError, ValueError, TypeError, AttributeError):  # it is not there, or broken
            return _read(kept.read_text(encoding="utf-8"), prefix)
        text = _text(find(module_path))
        with suppress(OSError, UserError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, text)
        return _read(text, prefix)

    module.define_import_structure = define


def _state(folder: Path) -> str:
    """Of the sources below it: another for each change that is written."""
    found, below = list[tuple[str, int, int]](), [str(folder)]
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    file = entry.stat()
                    found.append((entry.path, file.st_size, file.st_mtime_ns))
                elif entry.name != "__pycache__" and entry.is_dir():
                    below.append(entry.path)
    return sha256(repr(sorted(found)).encode()).hexdigest()


def _text(exported: Exported) -> str:
    needed = [
        [sorted(needs), {module: sorted(names) for module, names in sorted(of.items())}]
        for needs, of in exported.items()
    ]
    return json.dumps(needed)


def _read(text: str, prefix: str | None) -> Exported:
    before = f"{prefix}." if prefix else ""
    return {
        frozenset(needs): {before + module: set(names) for module, names in of.items()}
        for needs, of in json.loads(text)
    }
