"""Parts of torch that every model imports and that a process which is no rank and compiles nothing never uses.

`torch._dynamo` is asked what its compiler shall not touch, `torch.distributed.tensor` whether a tensor is of several
machines, `symbolic_shapes` and sympy whether a size is a formula. Imported they take 0.9 s of CPU time and 60 MiB
(docs/measurements.md). What stands in for each answers these questions, and becomes the real one when another is asked.
"""

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

_SHAPES = "torch.fx.experimental.symbolic_shapes"


def _nothing(*_words: Any, **_named: Any) -> None:
    """Where nothing is compiled, there is no graph to break."""


def itself(function: Callable[..., Any] | None = None, *_more: Any, **_named: Any) -> Any:
    """Where nothing is compiled, a function that shall be compiled in some way is what it was."""
    return itself if function is None else function


class _None:
    """What nothing is where there is one process and nothing is compiled: a tensor of several, compiled, a formula."""


class _EvalFrame:
    """torch._dynamo.eval_frame: it has one class that is asked for, of which nothing is."""

    OptimizedModule = _None

    def __getattr__(self, name: str) -> Any:
        module = sys.modules["torch._dynamo"]
        if name.startswith("__") or not isinstance(module, StandIn):
            raise AttributeError(name)
        module.become_real()
        return getattr(module.eval_frame, name)


def _equal(one: Any, other: Any) -> bool:
    both = isinstance(one, tuple | list) and isinstance(other, tuple | list)
    return len(one) == len(other) and all(map(_equal, one, other)) if both else one == other


# what is asked of numbers that are no formulas
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("expect_true", "guard_bool", "guard_or_false", "guard_or_true", "guard_size_oblivious"),
        lambda known, *_: known,
    ),
    **dict.fromkeys(("guarding_hint_or_throw", "statically_known_true"), lambda known: known),
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "sym_and": lambda *each: all(each),
    "sym_eq": _equal,
    "sym_or": lambda *each: any(each),
}


def _asked(name: str, *words: Any, **named: Any) -> Any:
    if not named and all(map(_is_plain, words)):
        return _OF_NUMBERS[name](*words)
    module = sys.modules[_SHAPES]
    if isinstance(module, StandIn):
        module.become_real()
    return getattr(module, name)(*words, **named)


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


_ANSWERS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {
        "eval_frame": _EvalFrame(),
        "graph_break": _nothing,
        **dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), itself),
    },
    "torch.distributed.tensor": {"DTensor": _None},
    "sympy": {"Basic": _None},
    _SHAPES: {name: partial(_asked, name) for name in _OF_NUMBERS},
}
# parts that do without the rest, of which models and recomputed layers need one
_PARTS = {"torch._dynamo": ("_trace_wrapped_higher_order_op", "config")}


class StandIn(ModuleType):
    """A module that is executed when more is asked of it than it was given."""

    _lock = RLock()
    _begun = False

    def __getattr__(self, name: str) -> Any:
        if name != "__path__":  # asked of what is no package too, whenever a name is imported from it
            self.become_real()
        return ModuleType.__getattribute__(self, name)

    def become_real(self) -> None:
        """Unless it does already. It is asked for its own names while it is executed, as any module is."""
        with self._lock:
            spec = self.__spec__
            if self._begun or spec is None or spec.loader is None:
                return
            self._begun = True
            answers = {name: vars(self).pop(name) for name in _ANSWERS[self.__name__]}
            try:
                spec.loader.exec_module(self)
            except BaseException:  # as a signal's: who asks again begins anew
                vars(self).update(answers)
                self._begun = False
                raise
            self.__class__ = ModuleType  # type: ignore[assignment]


class _Below(MetaPathFinder):
    """A module below a stand-in needs the whole package, which may import it on the way."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        above = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(above, StandIn):
            return None
        above.become_real()
        module = sys.modules.get(fullname)
        if module is None:
            return None
        module.__spec__ = ModuleSpec(fullname, _There(module))  # the import system takes this one, whatever it is given
        return module.__spec__


class _There(Loader):
    """Loads what is loaded."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def install() -> None:
    """Of those that are not imported yet. torch is."""
    for name, answers in _ANSWERS.items():
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            module = module_from_spec(spec)
            module.__class__ = StandIn
            vars(module).update(answers)
            _put(module)
    sys.meta_path.insert(0, _Below())


def _put(module: ModuleType) -> None:
    name = module.__name__
    sys.modules[name] = module
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, module)
    for part in _PARTS.get(name, ()):
        with suppress(ModuleNotFoundError):  # of another release
            importlib.import_module(f"{name}.{part}")
