"""MLflow's registry has the model with its signature, under the run that trained it, and answers from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import compiled
from exporting import SHORT, exported

from factory.run.folder import RunFolder, write_whole
from factory.tracking.to_mlflow import connect

URI = "sqlite:///mlflow.db"


@pytest.mark.slow
def test_a_model_is_registered_under_its_run(execute: Callable[..., Any], here: Path) -> None:
    import mlflow

    execute("method=lora", "method.rank=4", *SHORT)
    client, experiment = connect(compiled("hardware=cpu", f"tracking.uri={URI}", training=False).settings.tracking)
    trained = client.create_run(experiment).info.run_id
    client.set_terminated(trained, "KILLED", ended := 1_700_000_000_000)
    write_whole(RunFolder("run").tracking, f'{{"run_id": "{trained}"}}')
    words = ("run=run", "tracking=mlflow", f"tracking.uri={URI}", "export.check=false", "export.register=mine")
    told = exported(*words, "export.dir=out")["registered"]
    assert (told["name"], int(told["version"]), told["run"]) == ("mine", 1, trained)
    again = exported(*words, "export.dir=again")["registered"]
    assert int(again["version"]) == 2
    model = mlflow.pyfunc.load_model("models:/mine/1")
    assert {column.name for column in model.metadata.signature.inputs} >= {"messages"}
    given = model.predict({"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4})
    assert given[0]["choices"][0]["message"]["role"] == "assistant"
    info = client.get_run(trained).info
    assert (info.status, info.end_time) == ("KILLED", ended)  # of the training, not of what was made of it
    assert {found.source_run_id for found in client.search_logged_models([experiment])} == {trained}
