"""Where MLflow's file can lie is known before a run starts."""

import os
from pathlib import Path

import pytest
from conftest import compiled

from factory.config.refusal import UserError
from factory.config.settings import Tracking
from factory.tracking import spec
from factory.tracking.spec import problems


def wrong(uri: str) -> list[tuple[str, str]]:
    asked = Tracking(
        tool="mlflow",
        uri=uri,
        experiment="factory",
        parent_run=None,
        mode="online",
        system_metrics=False,
        system_metrics_seconds=10,
    )
    return [("tracking", found.message) for found in problems(asked)]


def test_a_file_that_cannot_be_written_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "m.db"
    assert wrong("sqlite:///m.db") == wrong(f"sqlite:///{file}") == wrong("http://nowhere:5000") == []
    file.touch()
    for place in (file, tmp_path):  # the user may write all, who runs the tests
        monkeypatch.setattr(os, "access", lambda path, mode, place=place: Path(path) != place or mode != os.W_OK)
        assert wrong("sqlite:///m.db") == [("tracking", f"{place} cannot be written")]
    assert wrong("sqlite:///nowhere/m.db") == [("tracking", f"there is no folder {tmp_path / 'nowhere'}")]


@pytest.mark.parametrize("verb", ["chat", "serve"])
def test_who_only_answers_needs_no_place_for_runs(verb: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_not_stored", lambda uri: "it cannot be written")
    words = f"model.path={tiny_model}", "model.template=chatml"
    assert compiled(*words, verb=verb).verb == verb
    for asked in (words, (*words, "tracking.uri=sqlite:///mlflow.db")):
        with pytest.raises(UserError, match=r"\[tracking\]"):
            compiled(*asked, verb="train" if asked is words else verb)
