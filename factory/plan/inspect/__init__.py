"""Settings to facts: everything that planning reads from outside. No torch, no weights; the hub only when needed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from factory import templates
from factory.config import groups, own
from factory.config.refusal import Refusal, UserError, refusal, refuse
from factory.config.settings import Evaluate, Settings
from factory.data import catalogue, hub
from factory.evaluation import spec as evaluation
from factory.export.spec import is_export, place_of
from factory.plan.facts import BenchmarkFacts, DataFacts, ExportFacts, Facts, FolderFacts, HarnessFacts
from factory.plan.inspect import calibration, machine
from factory.plan.inspect.benchmarks import look_at_benchmark
from factory.plan.inspect.data import look_at_data
from factory.plan.inspect.harness import look_at_harness
from factory.plan.inspect.model import look_at_model
from factory.plan.inspect.reward import look_at_reward
from factory.plan.plan import Plan, read_plan
from factory.rewards import spec as rewards
from factory.run.folder import MANIFEST, RunFolder, damage, is_whole, read_json

P = ParamSpec("P")
T = TypeVar("T")


class Tried:
    """Calls what looks, and keeps the problems of all: one that cannot be read hides none of the others."""

    def __init__(self) -> None:
        self.problems: list[Refusal] = []

    def __call__(self, looking: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T | None:
        """What it finds, or None."""
        try:
            return looking(*arguments, **more)
        except UserError as error:
            self.problems.extend(error.refusals)
        except OSError as error:
            wrong = f"it cannot be read ({error.strerror})"
            self.problems.append(
                refusal(
                    "cannot-read",
                    error.filename or "a file",
                    wrong,
                    because="it is needed to plan",
                    fix="check its name and its permissions",
                )
            )
        return None


def look(settings: Settings, *, training: bool) -> Facts:
    """What is true for these settings. `training` also asks whether what the run needs can be reached."""
    tried, stage, judge = Tried(), settings.stage, getattr(settings.stage, "reward_model", None)
    model = tried(look_at_model, settings, training=training)
    data = _data(settings, tried)
    reward = None if judge is None else tried(look_at_reward, judge, settings.tracking)
    benchmarks, harness = _exams(settings.evaluate, tried)
    for path in _own_template(settings):
        tried(templates.read, path)
    folder = tried(look_at_folder, settings.run_dir, stage.resume, training=training)
    export = tried(look_at_export, settings)
    measured, unmeasured = calibration.read()
    return Facts(
        export=export,
        measured=measured,
        unmeasured=unmeasured,
        machine=machine.look_at_machine(),
        model=model,
        data=data,
        folder=folder or FolderFacts(path=settings.run_dir, plan_digest=None, finished=False, resume_digest=None),
        problems=tuple(tried.problems),
        reward=reward,
        benchmarks=benchmarks,
        harness=harness,
        own=_own_files(settings),
    )


def _data(settings: Settings, tried: Tried) -> dict[str, DataFacts]:
    """Of the sources that can be read, by name."""
    listed = tried(catalogue.expand, settings.data.sources, settings.data.names)
    sources = settings.data.sources if listed is None else listed
    stage = settings.stage.name
    options = [folder / "data" for folder in groups.folders(settings.config_dirs) if folder != groups.CONF]
    found = {
        name: tried(look_at_data, name, source, stage, options)
        for name, source in sources.items()
        if source.origin != "catalogue"  # one that could not be read
    }
    looked = {name: facts for name, facts in found.items() if facts is not None}
    if settings.verb != "train":  # a plan of the others names the sets of the run that they follow
        return looked
    return {
        name: replace(facts, unreachable=hub.unreachable(facts.path) if facts.source.origin == "hub" else None)
        for name, facts in looked.items()
    }


def _exams(asked: Evaluate, tried: Tried) -> tuple[dict[str, BenchmarkFacts], HarnessFacts | None]:
    found = {name: tried(look_at_benchmark, name, asked) for name in asked.benchmarks}
    tasks = asked.harness_path if asked.harness else None
    harness = None if tasks is None else tried(look_at_harness, tasks)
    return {name: facts for name, facts in found.items() if facts is not None}, harness


def _own_files(settings: Settings) -> dict[str, str]:
    """The user's files that a plan reads or runs, and functions that it calls, with hashes of them."""
    code = [part.name for part in (settings.method, settings.stage) if own.is_code(part.name)]
    scales = [settings.export.calibration] if settings.export and settings.export.calibration else []
    called = _own_functions(settings)
    return {name: own.digest(name) for name in (*code, *_own_template(settings), *scales, *called)}


def _own_template(settings: Settings) -> list[str]:
    return [name for name in (settings.model.template,) if templates.is_file(name)]


def _own_functions(settings: Settings) -> list[str]:
    """The reward and the metrics as module:function."""
    reward, metrics = getattr(settings.stage, "reward", None), settings.evaluate.metrics
    named = rewards.named(reward) if isinstance(reward, str) else None
    asked = [named.name] if named is not None and named.kind == "function" else []
    return asked + [name for name in metrics if evaluation.kind(name) == "function"]


def asked(settings: Settings) -> Any:
    """All that `look` reads of the settings: where two are equal, so is what it finds."""
    stage, data, evaluate = settings.stage, settings.data, settings.evaluate
    of_stage = (stage.name, stage.resume, getattr(stage, "reward_model", None))
    exams = evaluate.benchmarks and (evaluate.benchmarks, evaluate.path, evaluate.shots, evaluate.max_samples)
    tasks = evaluate.harness and evaluate.harness_path
    return (
        settings.model,
        _own_files(settings),
        data.sources,
        data.names,
        of_stage,
        exams,
        tasks,
        settings.tracking,
        settings.run_dir,
        settings.config_dirs,
        settings.plan and settings.plan.format,
    )


def look_at_export(settings: Settings) -> ExportFacts | None:
    if settings.verb != "export" or settings.export is None or not settings.export.dir:
        return None
    path = place_of(settings.export.dir)
    nearest = _nearest(path.parent)  # it is written there, and renamed
    holds = path.is_dir() and any(path.iterdir())
    return ExportFacts(
        there="export" if is_export(path) else "file" if path.is_file() else "other" if holds else "nothing",
        free_bytes=shutil.disk_usage(nearest).free if _writable(nearest) else None,
        mounted=os.path.ismount(path),
        calibration=Path(settings.export.calibration).is_file() if settings.export.calibration else None,
    )


def _nearest(path: Path) -> Path:
    """It, or the first above it that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)


def look_at_folder(path: str, resume: str | None, *, training: bool) -> FolderFacts:
    folder = RunFolder(path)
    start = None
    if resume == "auto":
        start = folder.checkpoint()
    elif resume is not None:
        start = Path(resume)
        if not start.is_dir() or not is_whole(start):
            raise refuse(
                "no-checkpoint",
                f"stage.resume={resume}",
                "there is no whole checkpoint there",
                because="a run cannot be continued from half a state",
                fix="name a folder as outputs/…/checkpoints/step-000020, or set stage.resume=auto",
            )
        if training and (wrong := damage(start)) is not None:
            raise refuse(
                "damaged-checkpoint",
                f"stage.resume={resume}",
                wrong,
                because="its checksums were written with it, and a changed number would stay in every later step",
                fix=_before(start),
            )
    nearest = _nearest(folder.path.absolute())
    if training and not _writable(nearest):
        wrong = f"{nearest} {'cannot be written' if nearest.is_dir() else 'is a file, and no folder'}"
        raise refuse(
            "cannot-write",
            f"hydra.run.dir={path}",
            wrong,
            because="a run that cannot keep its results would be lost",
            fix="free space, or set hydra.run.dir (of a sweep hydra.sweep.dir) to a folder that can be written",
            machine=True,
        )
    there, saved_by = folder.plan_digest(), (read_json(start / MANIFEST) or {}).get("plan_digest") if start else None
    return FolderFacts(
        path=str(folder.path),
        plan_digest=there,
        finished=folder.status() == "finished",
        resume_digest=saved_by,
        plan=_plan_of(RunFolder(start.parent.parent), saved_by) if start else _plan_of(folder, there),
    )


def _plan_of(run: RunFolder, digest: str | None) -> Plan | None:
    try:
        made = read_plan(run.plan)
    except UserError:
        return None
    return made if made.digest() == digest else None


def _before(checkpoint: Path) -> str:
    """What to do where it is damaged: the newest sound one that was saved before it."""
    sound = RunFolder(checkpoint.parent.parent).sound_checkpoint(lambda _: None)
    return f"set stage.resume={sound}" if sound else "start the run again: there is no other that is as it was written"
