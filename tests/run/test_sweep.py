"""A sweep runs every job in a process of its own, tells which was refused, and closes with a table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import side_by_side
import yaml

from factory.config.words import size
from factory.tracking.to_mlflow import connect


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def said(where: Path, tiny_model: Path) -> str:
    """Of three jobs the middle one cannot work: GaLore's projected matrices are none that Muon may step."""
    options = [
        "method=lora,galore,full",
        "stage.optimizer=muon",
        "hardware=cpu",
        "precision=fp32",
        "evaluate.samples=0",
        "data.max_samples=30",
        "stage.max_steps=2",
        f"model.path={tiny_model}",
        f"tracking.uri=sqlite:///{where}/mlflow.db",
        "hydra.sweep.dir=swept",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "factory", "-m", *options],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_one_refused_job_stops_no_other(said: str, where: Path) -> None:
    assert "Traceback" not in said
    assert "[optimizer]" in said
    folder = where / "swept"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "0",
        "1",
        "2",
        "compare.html",
        "jobs.jsonl",
        "multirun.yaml",
        "sweep.json",
        "table.md",
    ]
    assert {path.name for path in (folder / "1").iterdir()} == {"run.log"}
    assert "[optimizer]" in (folder / "1" / "run.log").read_text()
    for job, method in (("0", "lora"), ("2", "full")):
        report = json.loads((folder / job / "report.json").read_text())
        assert report["status"] == "finished"
        plan = yaml.safe_load((folder / job / "plan.yaml").read_text())
        assert plan["settings"]["method"]["name"] == method
        assert (folder / job / "model").is_dir()


def test_the_table_holds_what_the_reports_say(said: str, where: Path) -> None:
    folder = where / "swept"
    lines = [line.strip("| \n").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    names, rows = lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[2:5]]
    assert {"trainable", "memory", "tokens/s", "perplexity before", "perplexity", "status"} <= set(names)
    assert [row["run"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["status"].startswith("refused")
    for job in (0, 2):
        report = json.loads((folder / str(job) / "report.json").read_text())
        assert rows[job]["status"] == "finished"
        assert rows[job]["trainable"] == f"{report['parameters']['trainable']:,}"
        assert rows[job]["memory"] == size(report["memory"]["peak_bytes"])
        assert rows[job]["perplexity"].strip("* ") == f"{report['evaluate']['perplexity']:,.3f}"
        assert rows[job]["perplexity before"] == f"{report['evaluate']['perplexity_before']:,.3f}"
    assert [row["what differs"] for row in rows] == ["method=lora", "method=galore", "method=full"]


def test_the_runs_are_nested_under_one(said: str, where: Path) -> None:
    client, experiment = connect(side_by_side.tracking(f"sqlite:///{where}/mlflow.db"))
    runs = client.search_runs([experiment])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.data.tags["method"] for run in children) == ["full", "lora"]
    assert parent.info.status == "FAILED"  # one job did not finish
    assert {run.info.status for run in children} == {"FINISHED"}
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"table.md", "compare.html", "table.json"}
