"""Settings to facts: everything that planning reads from outside. No torch, no weights; the hub only when needed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory import own, templates
from factory.data import catalogue
from factory.export.spec import is_export
from factory.facts import ExportFacts, Facts, FolderFacts
from factory.look import machine
from factory.look.benchmarks import look_at_benchmark
from factory.look.data import look_at_data
from factory.look.harness import look_at_harness
from factory.look.model import look_at_model
from factory.look.reward import look_at_reward
from factory.refusal import Refusal, UserError, refusal, refuse
from factory.run import calibration
from factory.run.folder import MANIFEST, RunFolder, damage, is_whole, read_json
from factory.settings import Settings


def look(settings: Settings, bad_keys: set[str], *, training: bool) -> Facts:
    """What is true for these settings. `training` also asks whether what the run needs can be reached."""
    problems: list[Refusal] = []

    @contextmanager
    def collecting() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            problems.extend(error.refusals)
        except OSError as error:
            problems.append(refusal("cannot-read", error.filename or "a file", f"it cannot be read ({error.strerror})"))

    model, data, reward, benchmarks, harness = None, {}, None, {}, None
    folder = FolderFacts(path=settings.run_dir, plan_digest=None, finished=False, resume_digest=None)
    if not any(key.startswith("model") for key in bad_keys):
        with collecting():
            model = look_at_model(settings, training=training)
    stage = settings.stage.name if settings.stage else "sft"
    readable = {
        name: source
        for name, source in (settings.data.sources or {}).items()
        if not any(key.startswith(f"data.sources.{name}") for key in bad_keys)
        and not (source.path is None and "data.path" in bad_keys)
    }
    with collecting():
        readable = catalogue.expand(readable, settings.data.names)
    for name, source in readable.items():
        if source.origin != "catalogue":  # one that could not be read
            with collecting():
                data[name] = look_at_data(name, source, stage)
    asked = getattr(settings.stage, "reward_model", None)
    if asked is not None:
        with collecting():
            reward = look_at_reward(asked, settings.tracking)
    if not any(key.startswith("evaluate") for key in bad_keys):
        for name in settings.evaluate.benchmarks:
            with collecting():
                benchmarks[name] = look_at_benchmark(name, settings.evaluate)
        if settings.evaluate.harness and settings.evaluate.harness_path is not None:
            with collecting():
                harness = look_at_harness(settings.evaluate.harness_path)
    own_files = _own_files(settings)
    for path in filter(templates.is_file, own_files):
        with collecting():
            templates.template(path)
    if settings.stage:
        with collecting():
            folder = look_at_folder(settings.run_dir, settings.stage.resume, training=training)
    measured, unmeasured = calibration.read()
    return Facts(
        export=look_at_export(settings),
        measured=measured,
        unmeasured=unmeasured,
        machine=machine.look_at_machine(),
        model=model,
        data=data,
        folder=folder,
        problems=tuple(problems),
        reward=reward,
        benchmarks=benchmarks,
        harness=harness,
        own=own_files,
    )


def _own_files(settings: Settings) -> dict[str, str]:
    """The user's method, stage and template, with hashes of them."""
    code = [part.name for part in (settings.method, settings.stage) if part is not None and own.is_code(part.name)]
    text = [name for name in (settings.model and settings.model.template,) if name and templates.is_file(name)]
    return {path: own.digest(path) for path in (*code, *text)}


def asked(settings: Settings, bad_keys: set[str]) -> Any:
    """All that `look` reads of the settings: where two are equal, so is what it finds."""
    stage, data, evaluate = settings.stage, settings.data, settings.evaluate
    of_stage = stage and (stage.name, stage.resume, getattr(stage, "reward_model", None))
    exams = evaluate.benchmarks and (evaluate.benchmarks, evaluate.path, evaluate.shots, evaluate.max_samples)
    tasks = evaluate.harness and evaluate.harness_path
    told = (
        settings.model,
        _own_files(settings),
        data.sources,
        data.names,
        of_stage,
        exams,
        tasks,
        settings.tracking,
        settings.run_dir,
    )
    return *told, bad_keys


def look_at_export(settings: Settings) -> ExportFacts | None:
    if settings.verb != "export" or not settings.export.dir:
        return None
    path = Path(settings.export.dir).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    holds = path.is_dir() and any(path.iterdir())
    return ExportFacts(
        there="export" if is_export(path) else "other" if holds or path.is_file() else "nothing",
        free_bytes=shutil.disk_usage(nearest).free if nearest.is_dir() and os.access(nearest, os.W_OK) else None,
        calibration=Path(settings.export.calibration).is_file() if settings.export.calibration else None,
    )


def look_at_folder(path: str, resume: str | None, *, training: bool) -> FolderFacts:
    folder = RunFolder(path)
    start = None
    if resume == "auto":
        start = folder.checkpoint()
    elif resume is not None:
        start = Path(resume)
        if not start.is_dir() or not is_whole(start):
            raise refuse("no-checkpoint", f"stage.resume={resume}", "there is no whole checkpoint there")
        if training and (wrong := damage(start)) is not None:
            raise refuse("damaged-checkpoint", f"stage.resume={resume}", wrong, fix=_before(start))
    nearest = next(parent for parent in (folder.path.absolute(), *folder.path.absolute().parents) if parent.exists())
    if training and (not nearest.is_dir() or not os.access(nearest, os.W_OK)):
        raise refuse("cannot-write", f"hydra.run.dir={path}", f"{nearest} cannot be written")
    return FolderFacts(
        path=str(folder.path),
        plan_digest=folder.plan_digest(),
        finished=folder.status() == "finished",
        resume_digest=(read_json(start / MANIFEST) or {}).get("plan_digest") if start else None,
    )


def _before(checkpoint: Path) -> str:
    """What to do where it is damaged: the newest sound one that was saved before it."""
    sound = RunFolder(checkpoint.parent.parent).sound_checkpoint(lambda _: None)
    return f"set stage.resume={sound}" if sound else "start the run again: there is no other that is as it was written"
