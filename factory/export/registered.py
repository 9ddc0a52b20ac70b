"""A written model in MLflow's registry, with its signature: what is served and promoted from there."""

from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from factory.config.refusal import first_line, refuse
from factory.plan.plan import Plan
from factory.plan.saved import chats
from factory.run.folder import RunFolder
from factory.tracking.ledger import run_ids
from factory.tracking.to_mlflow import connect

_NEEDS = ("transformers", "torch", "accelerate", "safetensors")


def register(plan: Plan, folder: Path) -> dict[str, Any]:
    """A new version of the model, under the MLflow run that trained it if the tracking server knows that.

    The task, and with it the signature, is a chat's where there is a chat template. Raises UserError.
    """
    import mlflow
    from mlflow import transformers
    from mlflow.exceptions import MlflowException

    assert plan.settings.export.register is not None and plan.settings.tracking.mlflow is not None
    try:
        client, experiment = connect(plan.settings.tracking)
        mlflow.set_tracking_uri(plan.settings.tracking.mlflow)
        known = _run(plan, client)
        run = known or client.create_run(experiment, run_name=f"export {folder.name}").info
        mlflow.set_experiment(experiment_id=run.experiment_id)
        # to start the run that trained it would give it another end and another status
        with nullcontext() if known else mlflow.start_run(run_id=run.run_id):
            made = transformers.log_model(
                transformers_model=_read(folder),  # of a folder's path MLflow 3.17 fails on transformers 5
                name="model",
                task="llm/v1/chat" if chats(folder) else "llm/v1/completions",
                registered_model_name=plan.settings.export.register,
                pip_requirements=[f"{name}=={version(name)}" for name in _NEEDS],
                metadata={"plan_digest": plan.digest()},
                run_id=run.run_id,
            )
    except (MlflowException, OSError, ValueError) as error:
        where = f"export.register={plan.settings.export.register}"
        raise refuse(
            "register-failed",
            where,
            first_line(error)[:200],
            because="MLflow did not take the model; the export itself is whole",
            fix=(
                "correct tracking.uri or the server, and export again with export.overwrite=true; it lies in "
                f"{plan.settings.export.dir}"
            ),
        ) from error
    return {
        "name": plan.settings.export.register,
        "version": made.registered_model_version,
        "uri": made.model_uri,
        "run": run.run_id,
    }


def _read(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        "model": AutoModelForCausalLM.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }


def _run(plan: Plan, client: Any) -> Any:
    """What the server says of the run that trained the model; None: it has none."""
    from mlflow.exceptions import MlflowException

    for run_id in run_ids(RunFolder(plan.settings.export.run)) if plan.settings.export.run else ():
        with suppress(MlflowException):
            return client.get_run(run_id).info
    return None
