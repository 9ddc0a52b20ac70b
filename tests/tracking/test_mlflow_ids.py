"""What an MLflow id names is that run or is refused, by whoever reads one: quickly, and with what is wrong."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import side_by_side

from factory.compare import found
from factory.config.refusal import UserError
from factory.plan.inspect.reward import look_at_reward
from factory.plan.saved import saved
from factory.run.folder import RunFolder
from factory.tracking import ledger
from factory.tracking.to_mlflow import connect
from factory.verbs.plan import plan_named

NONE = "0" * 32
# what reads an id, and by which rule it refuses one
READERS: dict[str, Callable[[str, str | None], Any]] = {
    "run-model": saved,
    "reward-model-missing": lambda run, uri: look_at_reward(run, side_by_side.tracking(uri)),
    "plan-missing": plan_named,
    "compare-tracking": lambda run, uri: found.found(found.asked([run]), side_by_side.tracking(uri)),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    connect(side_by_side.tracking(uri))
    return uri


def trained(folder: Path, uri: str) -> str:
    """The id of a run whose adapter is in the folder, which names it as it was typed."""
    made = RunFolder(side_by_side.run(folder))
    (made.model / "adapter_config.json").write_text("{}")
    client, experiment = connect(side_by_side.tracking(uri))
    run_id = client.create_run(experiment, tags={"folder": str(folder), "digest": "x"}).info.run_id
    book = ledger.of(side_by_side.tracking(uri), made)
    book.run_id = run_id
    book.write(made)
    return run_id


def refused(rule: str, run: str, uri: str | None) -> str:
    with pytest.raises(UserError) as caught:
        READERS[rule](run, uri)
    (refusal,) = caught.value.refusals
    assert refusal.rule == rule
    return refusal.wrong


def test_a_folder_that_another_run_was_written_to_is_not_the_runs(store: str, here: Path) -> None:
    """It had the same name: the new model was measured as the old one."""
    folder = Path("outputs/tuned")
    first = trained(folder, store)
    assert saved(first, store).adapter == "outputs/tuned/model"
    shutil.rmtree(folder)
    assert "outputs/tuned, is not here or holds another run" in refused("run-model", first, store)
    second = trained(folder, store)
    for rule in ("run-model", "reward-model-missing"):
        assert "outputs/tuned, is not here or holds another run" in refused(rule, first, store)
    assert saved(second, store).run == "outputs/tuned"
    tree = json.loads(RunFolder(folder).tracking.read_text())  # it was sent to another address since
    RunFolder(folder).tracking.write_text(json.dumps({**tree, "run_id": "other", "elsewhere": [tree]}))
    assert saved(second, store).run == "outputs/tuned"


@pytest.mark.parametrize("rule", READERS)
def test_what_is_wrong_is_said(rule: str, store: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "rows.db").write_text("no database")
    assert "there is no such run in sqlite:///" in refused(rule, NONE, store)
    assert "there is no tracking at tracking.uri=null" in refused(rule, NONE, None)
    assert "there is no tracking at tracking.uri=sqlite:///gone.db" in refused(rule, NONE, "sqlite:///gone.db")
    assert "rows.db cannot be reached ((sqlite3.DatabaseError) file is not a" in refused(
        rule, NONE, "sqlite:///rows.db"
    )
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    assert "http://127.0.0.1:9 cannot be reached (" in refused(rule, NONE, "http://127.0.0.1:9")
    assert time.monotonic() - began < 5  # not as long as MLflow tries by itself
    assert not (here / "gone.db").exists()


def test_a_run_without_a_folder_is_no_model(store: str) -> None:
    """A sweep's own, or one of somebody else's."""
    client, experiment = connect(side_by_side.tracking(store))
    run_id = client.create_run(experiment).info.run_id
    assert refused("run-model", run_id, store).endswith("mlflow.db names no folder")


def test_a_store_that_fails_when_it_is_asked_has_not_said_that_there_is_no_run(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def broken(*_: Any) -> Any:
        raise MlflowException("the database is locked")

    monkeypatch.setattr(MlflowClient, "get_run", broken)
    for rule in READERS:
        assert "does not give it (the database is locked)" in refused(rule, NONE, store)
