"""Methods and stages, found by listing their folders: `spec` needs no torch, `run` does.

A name that ends in .py is a file of the user's, which is both.
"""

import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from factory.config import own

Part = Literal["methods", "stages"]
_PACKAGE = Path(__file__).parents[1]


@cache
def names(kind: Part) -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in (_PACKAGE / kind).glob("*/spec.py")))


def runnable(kind: Part, name: str) -> bool:
    """Whether there is a torch part: a spec alone can be planned, not trained."""
    return own.is_code(name) or (_PACKAGE / kind / name / "run.py").is_file()


def spec(kind: Part, name: str) -> ModuleType:
    """Raises UserError where it is a file that cannot be one."""
    if own.is_code(name):
        return own.module(kind, name)
    return importlib.import_module(f"factory.{kind}.{name}.spec")


def run(kind: Part, name: str) -> ModuleType:
    if own.is_code(name):
        return own.module(kind, name)
    return importlib.import_module(f"factory.{kind}.{name}.run")


def hook(module: ModuleType, name: str, default: Any = None) -> Any:
    """What a spec or a run may have, or the default: listed in the docstrings of `methods` and `stages`."""
    return getattr(module, name, default)


def starts_from_weights(method: ModuleType, settings: Any) -> bool:
    """Whether a method, by its spec, takes its adapter's start out of the weights."""
    starts = hook(method, "starts_from_weights")
    return starts is not None and starts(settings)


def samples_answers(stage: ModuleType) -> bool:
    """Whether a stage, by its spec, learns from answers of the model's own, and not from those of its rows."""
    return hook(stage, "rows_per_step") is not None


def reads(stage: ModuleType) -> tuple[str, ...]:
    """The kinds of rows that a stage, by its spec, takes."""
    return (stage.KIND, "prompts") if samples_answers(stage) else (stage.KIND,)
