"""The folder of task files that lm-evaluation-harness is to read beside its own: that they are there, and their hash.

Whether the names are known is found out in the child: the library takes seconds to list its own tasks.
"""

import hashlib
from functools import partial
from pathlib import Path

from factory.config.refusal import refuse
from factory.plan.facts import HarnessFacts

_harness_path = partial(
    refuse,
    "harness-path",
    because="tasks are read from .yaml files in that folder and in the folders within it",
    fix=("set evaluate.harness_path to the folder of your task files, or leave it out for the library's own"),
)

_READ = (".yaml", ".py")  # what the library reads of a folder: the tasks, and the functions that they name


def look_at_harness(path: str) -> HarnessFacts:
    """Raises UserError where the folder holds no task file."""
    setting, folder = f"evaluate.harness_path={path}", Path(path)
    if not folder.is_dir():
        raise _harness_path(setting, "there is no such folder")
    if not any(file.suffix == ".yaml" for file in _files(folder)):
        raise _harness_path(setting, "it holds no .yaml file")
    return HarnessFacts(path=str(folder.absolute()), sha256=digest(folder))


def digest(folder: Path) -> str:
    """A hash of the task files and the code beside them. What a task's data is, its rows tell."""
    found = hashlib.sha256()
    for file in _files(folder):
        found.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in _READ and file.is_file())
