"""What of an error is told to a person."""

import errno
import shlex
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import side_by_side

from factory.config import compose
from factory.run.folder import RunFolder
from factory.tracking.spec import shows, title
from factory.tracking.to_mlflow import _tags
from factory.tracking.tracker import said


def test_of_a_lost_server_what_the_system_said() -> None:
    """Not what requests, urllib3 and MLflow quote of each other around it."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import MlflowHostCreds, http_request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MlflowException) as raised:
        http_request(MlflowHostCreds(host), "/api", "GET", max_retries=0, timeout=5)
    assert len(str(raised.value)) > 150
    assert said(raised.value) == "ConnectionRefusedError: Connection refused"


def test_of_other_errors_their_first_line() -> None:
    assert said(ValueError("\n  one\ntwo")) == "ValueError: one"
    assert said(ValueError()) == "ValueError"
    assert said(OSError(errno.ENOSPC, "No space left on device")) == "OSError: No space left on device"
    assert said(OSError("no number")) == "OSError: no number"
    assert "secret" not in said(ValueError("http://me:secret@host/x"))


@pytest.mark.parametrize("method", ["dora", "pissa", "qlora", "galore"])
def test_a_run_is_found_by_the_method_that_was_asked_for(method: str, tmp_path: Path) -> None:
    """The code of `method=dora` is lora's, and its runs were so named in MLflow's list and in its filter."""
    made = side_by_side.plan(f"method={method}")
    assert title(made) == f"{made.options['model']} {method} sft"
    assert _tags(made, RunFolder(tmp_path))["method"] == method


def test_a_run_that_trains_nothing_is_listed_by_what_it_is_of() -> None:
    """Not by the method that it has not, under which an export and the measured base would look alike."""
    made = side_by_side.plan("method=lora")
    assert title(made) == f"{made.options['model']} lora sft"
    adapter = replace(made.steps, load=replace(made.steps.load, adapter="/home/me/outputs/tuned/model"))
    assert title(replace(made.with_settings(verb="evaluate"), steps=adapter)) == "evaluate tuned"
    package = replace(made.steps, load=replace(made.steps.load, source="package"))
    assert title(replace(made.with_settings(verb="evaluate"), steps=package)) == f"evaluate {made.options['model']}"
    whole = replace(made.steps, load=replace(made.steps.load, source="folder", path="/home/me/outputs/all/model"))
    assert title(replace(made.with_settings(verb="export"), steps=whole)) == "export all"


def test_the_command_that_shows_a_run_can_be_pasted() -> None:
    """Wherever it lies; the stars of a pattern are the shell's."""
    board = side_by_side.tracking("my runs", tool="tensorboard")
    assert shlex.split(str(shows(board, Path("a run"))))[-2:] == ["--logdir", "my runs"]
    offline = side_by_side.tracking(None, tool="wandb", mode="offline")
    assert str(shows(offline, Path("outputs/one"))).endswith(" sync outputs/one/wandb/offline-run-*")
    assert str(shows(offline, Path("a sweep/*"))).endswith(" sync 'a sweep/'*/wandb/offline-run-*")


@pytest.mark.parametrize(("version", "append"), [("0.22.3", " --append"), ("0.29.0", " --append"), ("0.31.0", "")])
def test_no_part_of_a_run_that_went_on_offline_replaces_the_others(
    version: str, append: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `wandb sync` of these versions does; one that needs no --append refuses it."""
    monkeypatch.setattr("factory.tracking.spec.version", lambda _: version)
    offline = side_by_side.tracking(None, tool="wandb", mode="offline")
    for job in ("[0]", "[1]"):
        (here / "a sweep" / job / "wandb" / "offline-run-20260101_000000-a").mkdir(parents=True)
        assert " sync 'a sweep" in str(shows(offline, Path("a sweep", job)))
    assert " sync 'a sweep/'*/wandb" in str(shows(offline, Path("a sweep/*")))
    (here / "a sweep" / "[1]" / "wandb" / "offline-run-20260101_000001-a").mkdir()
    for place in ("*", "[1]"):
        assert f" sync{append} 'a sweep/" in str(shows(offline, Path("a sweep", place)))
    assert " sync 'a sweep/" in str(shows(offline, Path("a sweep", "[0]")))


@pytest.mark.parametrize(
    ("tool", "variable", "key"),
    [
        ("mlflow", "MLFLOW_TRACKING_URI", "uri"),
        ("mlflow", "MLFLOW_EXPERIMENT_NAME", "experiment"),
        ("wandb", "WANDB_PROJECT", "experiment"),
    ],
)
def test_where_runs_go_is_what_the_shell_says(
    tool: str, variable: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for everything else that logs from there; what is set on the command line is set."""
    monkeypatch.setenv(variable, "of-the-shell")
    for words, told in (((), "of-the-shell"), ((f"tracking.{key}=mine",), "mine")):
        composed = compose.compose(compose.parse([f"tracking={tool}", *words]))
        assert composed.tree["tracking"][key] == told
