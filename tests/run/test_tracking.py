"""MLflow gets everything that a run's folder holds, once; and a run needs no MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.execute.report import write_report
from factory.run import launch
from factory.run.folder import RunFolder
from factory.run.screen import Screen
from factory.run.tracking import Tracker, connect, flattened, loss_figure

Execute = Callable[..., Any]
LOGGED = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory", "tokens", "epoch")
ARTIFACTS = {"plan.yaml", "report.json", "loss.png", "perplexity.json"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def tracked(execute: Execute) -> Callable[[str], tuple[Any, dict[str, Any]]]:
    """A run of three steps with its report, not yet sent."""

    def tracked(uri: str) -> tuple[Any, dict[str, Any]]:
        short = ("stage.max_steps=3", "stage.logging_steps=1", "precision=fp32", "method.rank=4", "seed=7")
        done = execute(*short, "tracking=mlflow", f"tracking.uri={uri}", "data.max_samples=30")
        write_report(done.run, "finished", done.result, None)
        return done, json.loads(done.run.folder.report.read_text())

    return tracked


def test_everything_is_sent_once(
    uri: str, tracked: Callable[[str], tuple[Any, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, report = tracked(uri)
    plan, folder, lines = done.run.plan, done.run.folder, done.metrics
    first = Tracker(plan, folder)
    first.metrics(lines[:1])
    first.metrics([])
    first.metrics(lines[1:2])
    first.finish({**report, "status": "interrupted", "evaluate": {}})
    assert first.problem is None
    client, experiment = connect(plan.tracking)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"

    resumed = Tracker(plan, folder)  # as after `factory resume`, which may see old lines again
    resumed.metrics(lines)
    resumed.finish(report)
    assert resumed.problem is None
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    for name in LOGGED:
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == [(line["step"], line[name]) for line in lines]
    measured = report["evaluate"]
    assert {name: run.data.metrics[name] for name in measured} == measured
    assert measured.keys() == {"perplexity_before", "perplexity"}
    assert run.data.metrics["estimate/memory_error"] == report["estimate"]["memory_error"]
    assert "estimate/time_error" not in run.data.metrics  # no run was measured before
    assert run.data.metrics["peak_bytes"] == report["memory"]["peak_bytes"]
    wanted = {"model": plan.options["model"], "method": "lora", "stage": "sft", "digest": plan.digest()}
    assert {name: run.data.tags[name] for name in wanted} == wanted
    assert run.data.params == flattened(plan)
    some = {"train.max_steps": "3", "attach.settings.rank": "4", "seed": "7", "train.learning_rate": "0.0002"}
    assert some.items() <= run.data.params.items()

    assert {file.path for file in client.list_artifacts(run.info.run_id)} == ARTIFACTS
    there = Path(client.download_artifacts(run.info.run_id, "", str(folder.path)))
    assert (there / "plan.yaml").read_bytes() == folder.plan.read_bytes()
    assert json.loads((there / "report.json").read_text()) == report
    assert (there / "loss.png").read_bytes().startswith(b"\x89PNG")
    table = json.loads((there / "perplexity.json").read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row == {"method": "lora"} | {name: round(value, 4) for name, value in measured.items()}


def test_a_lost_server_is_told_and_harms_nothing(
    tracked: Callable[[str], tuple[Any, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done, report = tracked("http://127.0.0.1:9")
    plan, folder = done.run.plan, done.run.folder
    tracker = Tracker(plan, folder)
    tracker.metrics(done.metrics)
    assert launch._finish(plan, folder, 0, tracker, Screen()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "MLflow did not get everything" in said and "127.0.0.1" in said
    assert json.loads(folder.report.read_text()) == report


def test_without_an_address_nothing_is_sent(execute: Execute) -> None:
    done = execute("stage.max_steps=1", "evaluate.perplexity=false", "precision=fp32")
    tracker = Tracker(done.run.plan, done.run.folder)
    tracker.metrics(done.metrics)
    tracker.finish({"memory": {}})
    assert tracker.problem is None
    assert tracker._thread is None
    assert not list(Path.cwd().glob("ml*"))


@pytest.mark.parametrize(("unit", "words"), [("tokens", "nats per trained token"), ("samples", "mean over the rows")])
def test_the_figure_says_what_the_loss_is_of(unit: Any, words: str, tmp_path: Path) -> None:
    """And shows what was measured while training; a loss that was not finite is a gap."""
    folder = RunFolder(tmp_path)
    lines = [
        {"step": 1, "loss": 2.0, "learning_rate": 1e-3},
        {"step": 2, "loss": None, "learning_rate": 1e-3, "eval_loss": 1.5},
        {"step": 3, "loss": 1.0, "learning_rate": 1e-3, "eval_loss": None},
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss, _ = loss_figure(folder, unit).axes
    assert loss.get_ylabel() == f"loss ({words})"
    trained, held_out = loss.lines
    assert [str(value) for value in trained.get_ydata()] == ["2.0", "nan", "1.0"]
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [1.5])
