"""Python functions of the user's, named `module:function`."""

import importlib.util
import inspect
import sys
import traceback
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from factory.config.refusal import UserError, did_you_mean, refuse


def is_named(text: str) -> bool:
    """Whether it is of the form module:function."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


def file(path: str) -> Path | None:
    """Where a run finds the module of `module:function`, by which nothing is imported; None of what is no file."""
    importlib.invalidate_caches()
    top, *below = path.partition(":")[0].split(".")
    spec = PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])  # as `python -m` has them
    with suppress(ValueError):  # of what runs as the program
        spec = spec or importlib.util.find_spec(top)
    for name in below:  # a whole name would have its packages imported
        folders = spec and spec.submodule_search_locations
        spec = PathFinder.find_spec(name, list(folders)) if folders else None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def imported(path: str) -> Any:
    """The function of `module:function`. Raises UserError."""
    return module_of(path)[1]


def module_of(path: str) -> tuple[ModuleType, Any]:
    setting = f"path={path}"
    if not is_named(path):
        raise _function_missing(setting, "it is not of the form module:function", hint="")
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # after what is installed: a file of the user's hides nothing
    importlib.invalidate_caches()
    try:
        module = called(path, "importing it raised", lambda: importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        hint = did_you_mean(module_name, [file.stem for file in Path.cwd().glob("*.py")])
        raise _function_missing(setting, f"there is no module {error.name}", hint=hint) from None
    found: Any = module
    for part in name.split("."):
        if part not in dir(found):
            names = [known for known in dir(found) if callable(getattr(found, known)) and not known.startswith("_")]
            hint = did_you_mean(part, names)
            raise _function_missing(setting, f"{module_name} has no {part}", hint=hint)
        found = getattr(found, part)
    if not callable(found):
        raise _function_missing(setting, f"{name} is of type {type(found).__name__}, nothing to call", hint="")
    return module, found


def taken(found: Any) -> set[str] | None:
    """The names of its parameters; None: whatever it is given."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # of a builtin
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return {each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY}


def called(path: str, what: str, call: Any) -> Any:
    """The result of the user's code; what it raises is told with its own last line, not with a traceback of ours.

    A module that is not there is the caller's to tell, unless it is one that the user's module asks for.
    """
    module, _, function = path.partition(":")
    try:
        return call()
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise
        said = _told(error)
        raise refuse(
            "function-failed",
            f"path={path}",
            f"{what} {said}",
            because="it is your code that gives the rows",
            fix=(
                f'correct it; to try it by itself: python -c "import {module}; print(next(iter({module}.{function}'
                '())))"'
            ),
        ) from None


def _told(error: BaseException) -> str:
    """Its own last line, and where in the user's files it was raised."""
    said = traceback.format_exception_only(error)[-1].strip()
    place = _place(error)
    return f"{said} ({Path(place[0]).name}, line {place[1]})" if place else said


def _place(error: BaseException) -> tuple[str, int | None] | None:
    """The user's file and the line in it that are to blame."""
    if isinstance(error, SyntaxError) and Path(error.filename or "").is_file():  # nothing of that file has run
        return str(error.filename), error.lineno
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen"):
            return frame.filename, frame.lineno
    return None


def _function_missing(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "function-missing",
        setting,
        wrong,
        because="the rows come from a Python function, named by its import path",
        fix=f"{hint}write module:function, with the module in this folder or installed",
    )
