"""A saved reward model: where its files are, whether it is an adapter, what it was trained on."""

from functools import partial
from pathlib import Path

from factory.config.parsed import yaml_of
from factory.config.refusal import refuse
from factory.config.settings import Tracking
from factory.plan import heads
from factory.plan.facts import RewardFacts
from factory.plan.inspect.model import fingerprint_of, head_shapes, local, look_at_adapter, safetensors_shapes
from factory.run.folder import RunFolder, is_mlflow_id, read_json
from factory.tracking import from_mlflow

_reward_model_missing = partial(
    refuse,
    "reward-model-missing",
    because="its adapter or weights and its score head are read from there",
    fix="name a finished run of stage=rm, as in stage.reward_model=outputs/DATE/TIME",
)

_WEIGHTS = "model*.safetensors"


def look_at_reward(asked: str, tracking: Tracking) -> RewardFacts:
    """Of a run's folder, its model's, or an MLflow run's id. Raises UserError."""
    folder = local(asked)
    if not folder.is_dir() and is_mlflow_id(asked):
        folder = _of_run(asked, tracking)
    return look_at_saved_reward(folder, asked)


def look_at_saved_reward(folder: Path, asked: str) -> RewardFacts:
    setting = f"stage.reward_model={asked}"
    run = RunFolder(folder)
    if not folder.is_dir():
        raise _reward_model_missing(setting, "there is no such folder")
    if run.plan.is_file() and not run.model.is_dir():
        raise _reward_model_missing(setting, "its run has not saved a model")
    model = run.model if run.model.is_dir() else folder
    base = _trained_on(RunFolder(model.parent).plan)
    if (model / "adapter_config.json").is_file():
        adapter = look_at_adapter(str(model))
        return RewardFacts(
            path=adapter.path,
            adapter=adapter,
            config=None,
            shapes=adapter.shapes,
            heads=adapter.heads,
            base=base,
            fingerprint=adapter.fingerprint,
        )
    config, weights = read_json(model / "config.json"), sorted(model.glob(_WEIGHTS))
    if config is None or not weights:
        raise _reward_model_missing(setting, "there is neither an adapter nor a model in it")
    trained = head_shapes(model, asked)
    files = [model / "config.json", *weights, *sorted(model.glob(heads.FILES))]
    return RewardFacts(
        path=str(model.resolve()),
        adapter=None,
        config=config,
        shapes={name: shape for file in weights for name, shape in safetensors_shapes(file, asked).items()},
        heads=trained,
        base=base,
        fingerprint=fingerprint_of(files),
    )


def _trained_on(plan: Path) -> str | None:
    """The fingerprint of the model that a run's plan loads; None where there is none to read."""
    try:
        tree = yaml_of(plan.read_bytes())
        return str(tree["steps"]["load"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_run(run_id: str, tracking: Tracking) -> Path:
    """The folder that an MLflow run was written to."""
    try:
        return from_mlflow.folder_of_id(run_id, tracking.mlflow)
    except from_mlflow.Unknown as unknown:
        wrong = f"there is no such folder, and {unknown}"
        raise _reward_model_missing(f"stage.reward_model={run_id}", wrong) from None
