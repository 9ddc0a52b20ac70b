"""What `run=` names: a run's folder, the model in it or any saved one, or an MLflow run; as a command line."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory import templates
from factory.config.line import setting
from factory.config.refusal import UserError, refuse
from factory.config.settings import Quantization
from factory.plan import heads
from factory.plan.inspect.model import look_at_adapter
from factory.plan.plan import Plan, read_plan
from factory.run.folder import RunFolder, is_mlflow_id, last_here, read_json
from factory.stages.rm.spec import SCORE
from factory.tracking import from_mlflow

_TEMPLATE = "chat_template.jinja"
# keys of `model` for whole weights that a run saved: what the weights that it began with needed
BEFORE: dict[str, Any] = {"new_tokens": [], "pad_vocabulary_to": None, "revision": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What `run=` names: `path` are saved weights, or `adapter` a saved adapter of `base`.

    `plan` is that of its run, in the folder `run`. `quantization` is how the base was held; None: nobody knows.
    `template` is the chat template that it was trained with, where that was a file, or where no run names it.
    `revision` is that of the base on the hub, of an adapter whose run is gone. `positions` are keys of `model` for
    positions that the run stretched.
    """

    path: str | None = None
    adapter: str | None = None
    base: str | None = None
    plan: Plan | None = None
    run: str | None = None
    quantization: Quantization | None = None
    template: str | None = None
    positions: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None


def saved(run: str, tracking_uri: str | None) -> Saved:
    """Return the model of a folder or an MLflow run. Raises UserError where there is none, or it may not be read."""
    try:
        return _saved(run, tracking_uri)
    except OSError as error:  # a folder that this user may not enter
        wrong = f"{error.filename or 'it'} cannot be read ({error.strerror})"
        raise refuse(
            "cannot-read", f"run={run}", wrong, because="it is needed to plan", fix="check its name and its permissions"
        ) from None


def _saved(run: str, tracking_uri: str | None) -> Saved:
    folder = Path(run)
    if not folder.exists() and is_mlflow_id(run):
        folder = _folder_of(run, tracking_uri)
    made = RunFolder(folder)
    if not made.plan.is_file() and (folder.parent / "plan.yaml").is_file() and folder.name == made.model.name:
        made = RunFolder(folder.parent)
    model = made.model if made.plan.is_file() else folder
    plan = read_plan(made.plan, setting=f"run={run}") if made.plan.is_file() else None
    of_run = _of_plan(plan, made, model) if plan else {}
    if (model / "adapter_config.json").is_file():
        if of_run:
            return Saved(adapter=str(model), **of_run)
        said = read_json(model / "adapter_config.json") or {}
        base, revision = said.get("base_model_name_or_path"), said.get("revision")
        if not base:
            raise _run_model(f"run={run}", "its adapter_config.json names no base", hint="")
        own = look_at_adapter(str(model)).own_base
        return Saved(
            adapter=str(model),
            base=str(base),
            quantization=own and own.quantization,
            template=str(model / _TEMPLATE) if chats(model) else None,
            revision=revision if isinstance(revision, str) and not Path(base).exists() else None,
        )
    if (model / "config.json").is_file():
        return Saved(path=str(model), **of_run)
    if plan:
        raise _without_model(run, plan, made)
    if found := next(iter(sorted(folder.glob("*.gguf"))), None):  # as an export writes it
        hint = f"a GGUF file is named by {setting('model.path', found)}; "
        raise _run_model(f"run={run}", "what is in it is a GGUF file, and no run", hint=hint)
    wrong = "there is no run and no saved model in it" if folder.exists() else "there is no such folder"
    raise _run_model(f"run={run}", wrong, hint=last_here(saved=True))


def _without_model(run: str, plan: Plan, made: RunFolder) -> UserError:
    """Of a run whose folder has no model: it saves none, it lost it, or it is not at its end."""
    folder = shlex.quote(str(made.path))
    if plan.verb != "train":
        load, export = plan.steps.load, plan.settings.export if plan.export else None
        of = export.dir if export else load.adapter or (load.path if load.source == "folder" else None)
        hint = f"{'what it wrote' if export else 'what it measured'}: {setting('run', of)}; " if of else ""
        return refuse(
            "run-of-no-model",
            f"run={run}",
            f"it is a run of `factory {plan.verb}`",
            because="such a run saves no model of its own",
            fix=f"{hint}name the run that trained the model, or the folder of a saved one",
        )
    if made.status() == "finished":
        return refuse(
            "run-emptied",
            f"run={run}",
            "it is finished, and its model is not there any more",
            because="a run saves its model at its end, in its folder, and it was deleted or moved since",
            fix=f"put it back, or train it again: factory train --from-plan {folder}/plan.yaml",
        )
    return refuse(
        "run-unfinished",
        f"run={run}",
        "no model was saved in it yet",
        because="a run writes its model at its end, and this one is still training, failed, or was stopped",
        fix=f"wait for it, or end it by: factory resume {folder}",
    )


def _of_plan(plan: Plan, made: RunFolder, model: Path) -> dict[str, Any]:
    load, settings = plan.steps.load, plan.settings
    return {
        "plan": plan,
        "run": str(made.path),
        "quantization": settings.method.quantization,
        "template": str(model / _TEMPLATE) if templates.is_file(settings.model.template) else None,
        "base": load.path if load.source in ("folder", "gguf") else None,
        "positions": positions(plan),
    }


def positions(plan: Plan) -> dict[str, Any]:
    """Return the keys of `model` for what a run has saved: positions that it stretched are so in the files already."""
    patch = plan.steps.patch
    return {} if plan.settings.model.rope_scaling == "none" else {"rope_scaling": "none", "context_length": patch.reach}


def chats(folder: Path) -> bool:
    """Whether the written model in the folder has a chat template, as transformers names its file."""
    return (folder / _TEMPLATE).is_file()


def scores(adapter: str | None, path: str | None) -> bool:
    """Whether a saved model, an adapter or whole weights, is a reward model."""
    return any((Path(folder) / heads.file_of(SCORE)).is_file() for folder in (adapter, path) if folder)


def _folder_of(run: str, tracking_uri: str | None) -> Path:
    try:
        return from_mlflow.folder_of_id(run, tracking_uri)
    except from_mlflow.Unknown as unknown:
        raise _run_model(f"run={run}", f"there is no such folder, and {unknown}", hint="") from None


def _run_model(setting: str, wrong: str, hint: str) -> UserError:
    return refuse(
        "run-model",
        setting,
        wrong,
        because="a run's folder, a saved model's folder or the id of an MLflow run is needed",
        fix=f"{hint}name one, as in run=outputs/DATE/TIME, or a model by model=",
    )
