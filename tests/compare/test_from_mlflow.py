"""Runs are found by experiment, filter and id; those whose folder is elsewhere from what MLflow was sent."""

import json
import re
import shutil

import pytest
import side_by_side

from factory.compare import found
from factory.compare.comparison import compared
from factory.compare.page import page
from factory.compare.runs import Run
from factory.config.refusal import UserError
from factory.config.settings import Tracking
from factory.plan.plan import read_plan
from factory.run.folder import RunFolder
from factory.tracking import ledger
from factory.tracking.delivery import Delivery
from factory.tracking.to_mlflow import connect


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """A sweep of two runs, of which the second's folder is gone, and a run by itself."""
    where = tmp_path_factory.mktemp("tracked")
    tracking = side_by_side.tracking(f"sqlite:///{where}/mlflow.db", experiment="tried")
    client, experiment = connect(tracking)
    parent = client.create_run(experiment, run_name="sweep").info.run_id
    for name, method, perplexity, under in (
        ("a", "lora", 12.0, parent),
        ("b", "full", 9.0, parent),
        ("c", "oft", 40.0, None),
    ):
        folder = RunFolder(side_by_side.run(where / name, f"method={method}", evaluate={"perplexity": perplexity}))
        ours = tracking.model_copy(update={"parent_run": under})
        plan = read_plan(folder.plan).with_settings(tracking=ours)
        Delivery(plan, folder, ledger.of(ours, folder)).finish(json.loads(folder.report.read_text()))
    shutil.rmtree(where / "b")
    return tracking


def runs(tracking: Tracking, *words: str) -> dict[str | None, Run]:
    return {run.options.get("method"): run for run in found.found(found.asked(words), tracking)}


def test_an_experiment_is_its_runs(tracking: Tracking) -> None:
    made = runs(tracking, "experiment=tried")
    assert set(made) == {"lora", "full", "oft"}
    assert {run.status for run in made.values()} == {"finished"}
    here, gone = made["lora"], made["full"]
    assert here.folder is not None and here.said is None
    assert gone.folder is None and "its folder is not here" in str(gone.said)
    assert gone.report["evaluate"] == {"perplexity": 9.0} and gone.plan is not None
    assert [line["loss"] for line in gone.lines] == [line["loss"] for line in here.lines]
    (judged,) = compared(list(made.values())).verdicts["perplexity"]
    assert judged.best is None  # without rows nobody is


def test_a_filter_and_ids_choose(tracking: Tracking) -> None:
    assert set(runs(tracking, "metrics.perplexity < 20", "tags.method = 'lora'")) == {"lora"}
    assert set(runs(tracking, "experiment=tried", "metrics.perplexity<20")) == {"lora", "full"}
    client, experiment = connect(tracking)
    logged = {run.data.tags.get("method"): run.info.run_id for run in client.search_runs([experiment])}
    assert set(runs(tracking, logged["oft"])) == {"oft"}
    assert set(runs(tracking, logged[None])) == {"lora", "full"}  # of the sweep's own run, those under it


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("metrics.perplexity <<< 2",), "compare-filter"),
        (("metrics.perplexity < 2",), "compare-found"),
        (("experiment=other",), "compare-tracking"),
        (("0" * 32,), "compare-tracking"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(words: tuple[str, ...], rule: str, tracking: Tracking) -> None:
    with pytest.raises(UserError) as caught:
        runs(tracking, *words)
    assert [refusal.rule for refusal in caught.value.refusals] == [rule]


def test_a_lost_server_is_said(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"\[compare-tracking\].*cannot be reached"):
        runs(tracking.model_copy(update={"uri": "http://127.0.0.1:9"}), "experiment=tried")


def test_a_folder_is_known_by_its_run_not_by_its_name(tracking: Tracking) -> None:
    """Another run in the folder that MLflow names is not taken for it."""
    client, experiment = connect(tracking)
    (other,) = client.search_runs([experiment], "tags.method = 'oft'")
    run_id = client.create_run(experiment, tags={**other.data.tags, "method": "none"}).info.run_id
    try:
        (run,) = found.found(found.asked([run_id]), tracking)
        assert run.folder is None
    finally:
        client.delete_run(run_id)


def test_what_was_not_finite_is_no_point_of_a_curve(tracking: Tracking) -> None:
    """MLflow gives it as such; the page had no axis for it."""
    plan = side_by_side.plan("method=dora")
    client, experiment = connect(tracking)
    run_id = client.create_run(experiment, tags={"digest": plan.digest()}).info.run_id
    for step, loss in ((1, float("nan")), (2, 2.0), (3, float("nan")), (4, 1.0)):
        client.log_metric(run_id, "loss", loss, step=step)
    try:
        (run,) = found.found(found.asked([run_id]), tracking)
        assert [line["loss"] for line in run.lines] == [None, 2.0, None, 1.0]
        curves = re.findall(r"<polyline points='([^']*)'", page(compared([run])))
        assert curves and not any("nan" in curve for curve in curves)
    finally:
        client.delete_run(run_id)


def test_all_of_a_large_server_is_found(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives a part at a time, of experiments and of a sweep's jobs too: what was beyond was not there."""
    from mlflow import MlflowClient

    client, experiment = connect(tracking)
    later = client.create_experiment("later")
    (parent,) = client.search_runs([experiment], "attributes.run_name = 'sweep'")
    for name in ("search_runs", "search_experiments"):
        honest = getattr(MlflowClient, name)
        monkeypatch.setattr(
            MlflowClient,
            name,
            lambda self, *words, honest=honest, **how: honest(self, *words, **{**how, "max_results": 1}),
        )
    try:
        assert set(runs(tracking, "experiment=tried")) == {"lora", "full", "oft"}
        assert set(runs(tracking, parent.info.run_id)) == {"lora", "full"}
    finally:
        client.delete_experiment(later)


def test_who_compares_writes_nothing(tracking: Tracking) -> None:
    """Not the experiment either that runs would be logged to from here."""
    client, experiment = connect(tracking)
    (run,) = client.search_runs([experiment], "tags.method = 'oft'")
    assert set(runs(tracking.model_copy(update={"experiment": "not there"}), run.info.run_id)) == {"oft"}
    assert client.get_experiment_by_name("not there") is None
