"""MLflow gets everything that a run's folder holds, once; and a run needs no MLflow."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import side_by_side
from conftest import Said
from followed import LOSSES, more, run

from factory.config.compose import CommandLine
from factory.execute.context import append
from factory.run.folder import RunFolder, is_no_store
from factory.run.jobs import Job
from factory.run.sweep import _parent_run, record
from factory.run.swept import SweepFolder
from factory.tracking import ledger, tracker
from factory.tracking.delivery import Delivery
from factory.tracking.to_mlflow import (
    _alone,
    _data_sets,
    _shortened,
    _tags,
    connect,
    flattened,
    hyperparameters,
    loss_figure,
)
from factory.tracking.tracker import Tracker

LOGGED = ("loss", "learning_rate", "tokens", "memory")
ARTIFACTS = {"plan.yaml", "report.json", "loss.png", "perplexity.json", "samples.json", "run.log", "model_card"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_everything_is_sent_once(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tell-nobody-of-this")
    samples = [{"prompt": "p", "before": "b", "after": "tell-nobody-of-this"}]
    plan, folder, report = run(tmp_path / "run", uri, losses=(4.0, None, 3.0), samples=samples, experiment="once")
    folder.log.write_text("step 1\nGET https://me:pw@host tell-nobody-of-this\n")
    (folder.model / "README.md").write_text("# a card")
    folder.plan.write_text(f"{folder.plan.read_text()}# tell-nobody-of-this\n")
    interrupted = Tracker(plan, folder)
    told = interrupted.finish({**report, "status": "interrupted", "evaluate": {}})
    assert told is not None and (told["sent"], told["unsent"]) == (5, 0)
    client, experiment = connect(plan.settings.tracking)
    (made,) = client.search_runs([experiment])
    assert (made.info.status, made.info.run_id) == ("KILLED", told["run_id"])

    assert Tracker(plan, folder).finish(report) == told  # as after `factory resume`
    (made,) = client.search_runs([experiment])
    assert made.info.status == "FINISHED"
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for name in LOGGED:
        history = client.get_metric_history(made.info.run_id, name)
        points = [(point.step, str(point.value), point.timestamp) for point in history]
        wanted = [(line["step"], float("nan") if line[name] is None else float(line[name])) for line in lines]
        assert points == [
            (step, str(value), round(1000 * line["time"])) for (step, value), line in zip(wanted, lines, strict=True)
        ]
    assert {name: made.data.metrics[name] for name in report["evaluate"]} == report["evaluate"]
    assert made.data.metrics["peak_bytes"] == report["memory"]["peak_bytes"]
    assert made.info.run_name == f"{plan.options['model']} lora sft"
    wanted = {
        "verb": "train",
        "model": plan.options["model"],
        "method": "lora",
        "stage": "sft",
        "digest": plan.digest(),
    }
    assert wanted.items() <= made.data.tags.items()
    assert {"mlflow.user", "mlflow.source.name", "folder"} <= made.data.tags.keys()
    assert made.data.params == flattened(plan)
    some = {"stage.max_steps": "4", "method.rank": "8", "packages.torch": plan.packages["torch"]}
    assert some.items() <= made.data.params.items()
    (data,) = made.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("demo", "training")
    assert str(plan.steps.align.sources["demo"].sha256).startswith(data.dataset.digest)

    assert {file.path for file in client.list_artifacts(made.info.run_id)} == ARTIFACTS
    there = Path(client.download_artifacts(made.info.run_id, "", str(tmp_path)))
    assert (there / "plan.yaml").read_text() == folder.plan.read_text().replace("tell-nobody-of-this", "[HF_TOKEN]")
    assert json.loads((there / "report.json").read_text())["tracking"] == told
    assert (there / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (there / "model_card" / "README.md").read_text() == "# a card"
    table = json.loads((there / "perplexity.json").read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {"method": "lora", **report["evaluate"]}
    assert {each["path"] for each in json.loads(made.data.tags["mlflow.loggedArtifacts"])} == {
        "perplexity.json",
        "samples.json",
    }
    for name in ("report.json", "run.log", "samples.json", "plan.yaml"):
        text = (there / name).read_text()
        assert "tell-nobody" not in text and "pw@" not in text and ("[HF_TOKEN]" in text)


def test_parameters_and_tags_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tell-nobody-of-this")
    plan, folder, _ = run(tmp_path / "run", "sqlite:///no.db")
    plan = plan.with_settings(options={**plan.options, "model": "tell-nobody-of-this"})
    assert flattened(plan)["option.model"] == _tags(plan, folder)["model"] == "[HF_TOKEN]"


def test_a_parameter_that_mlflow_would_not_take_says_how_long_it_was() -> None:
    assert _shortened("x" * 6000) == "x" * 6000
    cut = _shortened("x" * 12_345)
    assert len(cut) == 6000 and cut.endswith("x … (12,345 characters; plan.yaml has all)")


def test_a_parameter_is_whole_and_a_number_is_one(tmp_path: Path) -> None:
    plan, _, _ = run(tmp_path / "run", "sqlite:///no.db")
    long = "/a/folder/far/below" * 20
    plan = replace(
        plan.with_settings(options={**plan.options, "model": long}), packages={**plan.packages, "cuda": "12.10"}
    )
    told = flattened(plan)
    assert (told["option.model"], told["packages.cuda"], told["stage.max_steps"]) == (long, "12.10", "4")
    numbers = hyperparameters(plan)
    assert numbers.keys() == told.keys()
    assert (numbers["stage.max_steps"], numbers["stage.learning_rate"]) == (4, plan.settings.stage.learning_rate)
    assert (numbers["option.model"], numbers["packages.cuda"], numbers["pack.packing"]) == (long, "12.10", "false")


def test_what_a_model_is_measured_on_trains_none(tmp_path: Path) -> None:
    plan, _, _ = run(tmp_path / "run", "sqlite:///no.db")
    for verb, told in (("train", "training"), ("evaluate", "evaluation")):
        (found,) = _data_sets(plan.with_settings(verb=verb))
        assert [tag.value for tag in found.tags] == [told]


def test_a_name_that_mlflow_takes_in_none_loses_nothing(uri: str, tmp_path: Path) -> None:
    """Of a user's data set, and of what a stage of their own watches."""
    plan, folder, report = run(tmp_path / "run", uri, experiment="names")
    named, data = "mine (v2)+", plan.settings.data
    align = replace(plan.steps.align, sources={named: plan.steps.align.sources["demo"]})
    plan = replace(plan, steps=replace(plan.steps, align=align))
    plan = plan.with_settings(data=data.model_copy(update={"sources": {named: data.sources["demo"]}}))
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    folder.metrics.write_text("".join(f"{json.dumps({**line, 'acc@1': 0.5})}\n" for line in lines))
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0, told
    client, _ = connect(plan.settings.tracking)
    made = client.get_run(told["run_id"])
    assert made.data.params["align.sources.mine _v2__.format"] == align.sources[named].format
    assert made.data.metrics["acc_1"] == 0.5


def test_sent_twice_is_there_once(uri: str, tmp_path: Path) -> None:
    """What arrived, and whose answer was lost, is sent again: MLflow knows it by name, step and time."""
    plan, folder, report = run(tmp_path / "run", uri, experiment="twice")
    folder.system.write_text(json.dumps({"time": 1.7e9, "values": {"system/cpu_utilization_percentage": 5.0}}) + "\n")
    book = ledger.of(plan.settings.tracking, folder)
    for _ in range(2):
        sending = Delivery(plan, folder, book)
        sending._by_another = False  # nobody asks the server how far it is
        sending.finish(report)
        book.step = book.samples = 0
        book.described = book.result = False
    client, experiment = connect(plan.settings.tracking)
    (made,) = client.search_runs([experiment])
    for name, values in (("loss", list(LOSSES)), ("system/cpu_utilization_percentage", [5.0]), ("perplexity", [7.5])):
        assert [point.value for point in client.get_metric_history(made.info.run_id, name)] == values
    assert len(made.inputs.dataset_inputs) == 1


def test_a_run_whose_making_nobody_heard_of_is_found(uri: str, tmp_path: Path) -> None:
    plan, folder, report = run(tmp_path / "run", uri, experiment="unheard")
    book = ledger.of(plan.settings.tracking, folder)
    Delivery(plan, folder, book).send()
    made, book.run_id = book.run_id, None
    Delivery(plan, folder, book).finish(report)
    assert book.run_id == made
    client, experiment = connect(plan.settings.tracking)
    assert len(client.search_runs([experiment])) == 1


def test_a_locked_database_is_tried_again(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    plan, folder, report = run(tmp_path / "run", uri, experiment="locked")
    honest, asked = MlflowClient.log_batch, list[int]()

    def locked(self: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(1)
        if len(asked) < 3:
            raise MlflowException("(sqlite3.OperationalError) database is locked")
        return honest(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", locked)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0 and len(asked) > 3


def test_the_run_of_somebody_around_us_is_left_alone(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_RUN_ID, as `mlflow run` exports it, and a run that autologging holds open: ours is beneath the one."""
    from mlflow import MlflowClient

    plan, folder, report = run(tmp_path / "run", uri, experiment="around")
    client, experiment = connect(plan.settings.tracking)
    outer = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0 and told["run_id"] != outer
    assert client.get_run(told["run_id"]).data.tags["mlflow.parentRunId"] == outer
    theirs = client.get_run(outer)
    assert (theirs.info.status, theirs.data.params, theirs.data.metrics) == ("RUNNING", {}, {})
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # of another server
    plan, folder, report = run(tmp_path / "other", uri, experiment="around")
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0
    assert "mlflow.parentRunId" not in MlflowClient(uri).get_run(told["run_id"]).data.tags


SHARED = """
import json, sys
from pathlib import Path
from factory.plan.plan import read_plan
from factory.config.compose import CommandLine
from factory.execute.context import append
from factory.run.folder import RunFolder
from factory.run.jobs import Job
from factory.run.sweep import record
from factory.run.swept import SweepFolder
from factory.tracking.tracker import Tracker
folder = RunFolder(sys.argv[1])
print(input(), flush=True)
print(json.dumps(Tracker(read_plan(folder.plan), folder).finish(json.loads(folder.report.read_text()))))
"""


def test_one_process_at_a_time_opens_a_database(tmp_path: Path) -> None:
    entered, uri = list[str](), f"sqlite:///{tmp_path}/new.db"

    def second() -> None:
        with _alone(uri):
            entered.append("second")

    waiting = threading.Thread(target=second)
    with _alone(uri):
        waiting.start()
        waiting.join(0.2)
        entered.append("first")
    waiting.join(5)
    assert entered == ["first", "second"]
    with _alone("http://host"), _alone("http://host"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_jobs_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    made = [run(tmp_path / f"run-{number}", uri) for number in range(4)]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _, folder, _ in made
    ]
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    told = [json.loads(job.communicate(timeout=240)[0].splitlines()[-1]) for job in jobs]
    assert [each["unsent"] for each in told] == [0, 0, 0, 0], told
    client, experiment = connect(made[0][0].settings.tracking)
    runs = client.search_runs([experiment])
    assert {each.info.run_id for each in runs} == {each["run_id"] for each in told}
    for each in runs:
        assert [point.value for point in client.get_metric_history(each.info.run_id, "loss")] == list(LOSSES)


def test_without_an_address_nothing_is_sent(here: Path) -> None:
    plan, folder, report = run(here / "run", None)
    tracker = Tracker(plan, folder)
    tracker.wake()
    assert tracker.finish(report) is None
    assert tracker.problem is None and tracker._thread is None
    assert not folder.tracking.exists() and {path.name for path in here.iterdir()} == {"run"}


@pytest.mark.parametrize(("unit", "words"), [("tokens", "nats per trained token"), ("samples", "mean over the rows")])
def test_the_figure_says_what_the_loss_is_of(unit: Any, words: str) -> None:
    """And shows what was measured while training; a loss that was not finite is a gap."""
    lines = [
        {"step": 1, "loss": 2.0, "learning_rate": 1e-3},
        {"step": 2, "loss": None, "learning_rate": 1e-3, "eval_loss": 1.5},
        {"step": 3, "loss": 1.0, "learning_rate": 1e-3, "eval_loss": None},
    ]
    loss, _ = loss_figure(lines, unit).axes
    assert loss.get_ylabel() == f"loss ({words})"
    trained, held_out = loss.lines
    assert [str(value) for value in trained.get_ydata()] == ["2.0", "nan", "1.0"]
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [1.5])


def test_no_folder_of_another_tool_is_made(here: Path, uri: str) -> None:
    plan, folder, report = run(here / "run", uri, experiment="clean")
    Tracker(plan, folder).finish(report)
    assert not {"wandb", "tensorboard", "mlruns"} & {path.name for path in here.iterdir()}
    assert RunFolder(folder.path).tracking.is_file()


def test_a_sweep_made_without_its_server_is_sent_whole(here: Path, uri: str, command: Callable[..., Said]) -> None:
    """With a run above its jobs, and the table; twice is once."""
    sweep = SweepFolder("swept")
    for name, method in (("0", "lora"), ("1", "oft")):
        plan, _, _ = run(here / "swept" / name, uri, f"method={method}", experiment="swept")
        job = Job(name=name, overrides=(f"method={method}",), plan=plan)
        sweep.write(record(CommandLine(overrides=("method=lora,oft",)), [job], None))
    sweep.table.write_text("| a table |\n")
    sweep.page.write_text("<p>a page</p>")
    for _ in range(2):
        said = command("track", "swept")
        assert (said.code, said.err) == (0, "")
    client, experiment = connect(plan.settings.tracking)
    runs = client.search_runs([experiment])
    (parent,) = (each for each in runs if "mlflow.parentRunId" not in each.data.tags)
    children = [each for each in runs if each is not parent]
    assert sorted(each.data.tags["method"] for each in children) == ["lora", "oft"]
    assert {each.data.tags["mlflow.parentRunId"] for each in children} == {parent.info.run_id}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "table.md",
        "compare.html",
        "table.json",
    }
    for each in children:
        assert [point.value for point in client.get_metric_history(each.info.run_id, "loss")] == list(LOSSES)
    assert json.loads(RunFolder("swept/0").report.read_text())["tracking"]["unsent"] == 0


def test_a_copy_of_a_sweep_has_one_run_above_it(here: Path, uri: str, command: Callable[..., Said]) -> None:
    """However often it is sent; it began and ended as its jobs did, and was stopped. A job that goes on waits alone."""
    sweep, made = SweepFolder("swept"), list[Job]()
    for name, method, code in (("0", "lora", 0), ("1", "oft", 130)):
        plan, _, _ = run(here / "swept" / name, uri, f"method={method}", experiment="home")
        made.append(Job(name=name, overrides=(f"method={method}",), plan=plan))
        append(sweep.outcomes, {"job": name, "code": code})
    sweep.write(record(CommandLine(overrides=("method=lora,oft",)), made, None))
    for _ in range(2):
        said = command("track", "swept", "tracking.experiment=copied")
        assert (said.code, said.err) == (0, "")
    client, experiment = connect(plan.settings.tracking.model_copy(update={"experiment": "copied"}))
    runs = client.search_runs([experiment])
    (parent,) = (each for each in runs if "mlflow.parentRunId" not in each.data.tags)
    assert len(runs) == 3 and parent.info.status == "KILLED"
    assert parent.info.start_time == min(each.info.start_time for each in runs) == 1_700_000_000_000
    assert parent.info.end_time == max(each.info.end_time for each in runs if each is not parent)
    with RunFolder("swept/0").claimed():
        said = command("track", "swept", "tracking.experiment=third")
    assert said.code == 1 and "swept/0: 6 records did not reach" in said.err and "another process" in said.err
    assert "swept/1: 6 records sent" in said.out


def test_a_store_that_has_the_run_is_not_made_anew_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Said]
) -> None:
    """Its address is that of the folder in which the run was started."""
    plan, folder, report = run(here / "run", "sqlite:///mlflow.db")
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0
    more(folder, 5)
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    said = command("track", str(folder.path))
    assert said.code == 1 and f"{here / 'other' / 'mlflow.db'} is not there" in said.err
    assert not list((here / "other").iterdir())
    monkeypatch.chdir(here)
    assert "1 record sent" in command("track", str(folder.path)).out


def test_a_store_of_files_that_is_closed_holds_up_no_curve(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a server that gives its clients a path of its own: what is missing is told, and can be sent."""
    monkeypatch.setattr(tracker, "_AGAIN", 0.0)
    plan, folder, report = run(tmp_path / "run", uri, experiment="closed")
    client, _ = connect(plan.settings.tracking.model_copy(update={"experiment": "open"}))
    client.create_experiment("closed", artifact_location="file:///dev/null/closed")
    told = Tracker(plan, folder).finish(report)
    assert told is not None and (told["sent"], told["unsent"]) == (4, 2) and "NotADirectory" in told["problem"]
    made = client.get_run(told["run_id"])
    assert made.info.status == "FINISHED" and made.data.params == flattened(plan)
    assert made.data.metrics["perplexity"] == report["evaluate"]["perplexity"]
    assert [point.value for point in client.get_metric_history(told["run_id"], "loss")] == list(LOSSES)


def test_a_sweep_that_goes_on_without_its_server_knows_its_own_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else `factory track` would make another, and the first would stay as it was for ever."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away, line = side_by_side.tracking("http://127.0.0.1:9"), CommandLine(overrides=())
    for known in ("made-before", None):
        assert _parent_run(away, SweepFolder("swept"), line, known) == known
    assert capsys.readouterr().err.count("cannot be reached") == 2


def delayed(call: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(1)
        return call(*arguments)

    return slow


def test_a_server_that_is_slow_and_answers_is_waited_for(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result is many requests: patience is for each, not for all of them."""
    from mlflow import MlflowClient

    plan, folder, report = run(tmp_path / "run", uri, experiment="slow", samples=[{"prompt": "p", "after": "a"}])
    folder.log.write_text("step 1\n")
    Delivery(plan, folder, ledger.of(plan.settings.tracking, folder)).send()
    for name in ("log_text", "log_dict", "log_figure"):
        monkeypatch.setattr(MlflowClient, name, delayed(getattr(MlflowClient, name)))
    monkeypatch.setattr(tracker, "_PATIENCE_WITH_FILES", 4.0)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 0, told


def test_a_deleted_experiment_is_said_to_be(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow keeps its name: what it says is that an experiment of some number must be in the active state."""
    monkeypatch.setattr(tracker, "_AGAIN", 0.0)
    plan, folder, report = run(tmp_path / "run", uri, experiment="deleted")
    client, experiment = connect(plan.settings.tracking)
    client.delete_experiment(experiment)
    told = Tracker(plan, folder).finish(report)
    assert told is not None and told["unsent"] == 6
    assert "the experiment deleted is deleted" in told["problem"] and "restore" in told["problem"]
    client.restore_experiment(experiment)
    assert Tracker(plan, folder).finish(report) == ledger.told(ledger.of(plan.settings.tracking, folder), 6, 0)


def test_a_store_may_have_options(tmp_path: Path) -> None:
    """Of SQLAlchemy, for a database that many write into."""
    uri = f"sqlite:///{tmp_path}/mine.db?timeout=30"
    assert is_no_store(uri)
    client, experiment = connect(side_by_side.tracking(uri))
    assert client.get_experiment(experiment).name == "factory" and not is_no_store(uri)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]
