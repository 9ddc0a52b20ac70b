"""An export's folder: whole or not there."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import factory
from factory.config.refusal import refuse
from factory.execute.checkpoint import all_to_disk, to_disk
from factory.export import spec
from factory.plan.plan import Plan
from factory.run.folder import open_as, unwritable


def in_place(made: Plan, written: Callable[[Path], None]) -> None:
    """`written` fills a folder beside the wanted one, which then takes its place. Raises UserError; leaves no half."""
    asked = made.settings.export
    from safetensors import SafetensorError

    folder = spec.place_of(asked.folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        written(aside)
        _mark(made, aside)
        open_as(aside / spec.MARKER)
        all_to_disk(aside)
        if folder.exists() and any(folder.iterdir()):
            if not (asked.overwrite and spec.is_export(folder)):  # since the plan was made
                raise refuse(
                    "export-dir",
                    f"export.dir={asked.dir}",
                    "there is something in it",
                    because="nothing is overwritten unasked",
                    fix="set export.overwrite=true, or another export.dir",
                )
            folder.rename(old)
        aside.rename(folder)
        to_disk(folder.parent)  # before the old one goes
    except OverflowError as error:
        fix = "set export.dtype=bfloat16 or float32"
        wrong = f"{error} has numbers that float16 has not"
        raise refuse(
            "export-unfit",
            f"export.dtype={made.exported.dtype}",
            wrong,
            because="what is written would not answer as the model does",
            fix=fix,
        ) from None
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():  # whatever came between the two renames
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _mark(made: Plan, aside: Path) -> None:
    asked = made.settings.export
    said = {
        "written_by": "factory export",
        "version": factory.__version__,
        "plan_digest": made.digest(),
        "format": asked.format,
        "dtype": made.exported.dtype,
        "quantization": asked.quantization,
    }
    (aside / spec.MARKER).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def forget_the_dead(folder: Path) -> None:
    """Removes what exports to this folder have left that were killed."""
    folder = spec.place_of(folder)
    for found in folder.parent.glob(f".{folder.name}.*"):
        pid = re.fullmatch(re.escape(f".{folder.name}.") + r"(\d+)(\.old)?", found.name)
        if pid is None or Path(f"/proc/{pid[1]}").exists():
            continue
        if pid[2] and not folder.exists():  # killed between two renames
            found.rename(folder)
        else:
            shutil.rmtree(found, ignore_errors=True)
