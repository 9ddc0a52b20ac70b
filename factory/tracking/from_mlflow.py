"""What MLflow says of a run that is named by its id. Who asks makes nothing there, and waits for nobody long."""

import logging
import os
from pathlib import Path
from typing import Any

from factory.config.refusal import first_line
from factory.run.folder import RunFolder, is_no_store
from factory.tracking.ledger import run_ids

# of MLflow's client, unless the user has set them: we try again ourselves, and nobody waits minutes for a lost server
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


class Unknown(Exception):
    """What was asked for is not to be had; its text says why."""


def client_of(uri: str) -> Any:
    """A client that nobody has asked yet whether its store can be reached."""
    for name, value in _IMPATIENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def reader(uri: str | None) -> Any:
    """A client whose store answers. Raises Unknown."""
    if uri is None or is_no_store(uri):
        raise Unknown(f"there is no tracking at tracking.uri={uri or 'null'}")
    try:
        client = client_of(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # whatever a server or its database may raise
        raise Unknown(f"{uri} cannot be reached ({first_line(error)})") from None
    return client


def run_of(client: Any, run_id: str, uri: str) -> Any:
    """What the store at `uri` has of the run. Raises Unknown."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except Exception as error:  # as above
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise Unknown(f"there is no such run in {uri}") from None
        raise Unknown(f"{uri} does not give it ({first_line(error)})") from None


def artifact(client: Any, run_id: str, name: str, aside: str) -> Path:
    """A file that was logged beside the run, copied into the folder `aside`. Raises Unknown."""
    try:
        return Path(client.download_artifacts(run_id, name, aside))
    except Exception as error:  # as above, and whatever a store of files may raise
        raise Unknown(f"its {name} is not to be had ({first_line(error)})") from None


def folder_of(made: Any) -> Path | None:
    """The folder that the run was written to; None where that is not here, or holds another run by now.

    A folder's name is relative to where the run was started, and is taken again once what it named is deleted.
    """
    folder = Path(made.data.tags.get("folder", ""))
    return folder if made.info.run_id in run_ids(RunFolder(folder)) else None


def folder_of_id(run_id: str, uri: str | None) -> Path:
    """The same of an id. Raises Unknown where it is not here, too."""
    made = run_of(reader(uri), run_id, str(uri))
    if (folder := folder_of(made)) is None:
        named = made.data.tags.get("folder")
        wrong = f"the folder of that run, {named}, is not here or holds another run by now"
        raise Unknown(wrong if named else f"that run in {uri} names no folder")
    return folder
