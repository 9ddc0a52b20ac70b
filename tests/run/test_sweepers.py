"""What Hydra's grammar and its plugins do in a sweep: globs, intervals, launchers, sweepers that choose each job."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import side_by_side
import yaml

from factory.config import compose, groups, sweeps
from factory.config.refusal import UserError
from factory.run.folder import RunFolder
from factory.run.sweep import _value
from factory.run.swept import SweepFolder
from factory.tracking.to_mlflow import connect

# one which chooses as it goes
OTHER = ("hydra.sweeper._target_=hydra_plugins.other.Sweeper", "+hydra.sweeper.sampler.seed=null")


def split(*overrides: str) -> Any:
    line = compose.parse(["-m", *overrides])
    return sweeps.jobs(line, "x")


def test_a_glob_is_the_options_that_a_person_sees(here: Path) -> None:
    (here / "mine" / "method").mkdir(parents=True)
    (here / "mine" / "method" / "lora_mine.yaml").write_text("defaults: [lora]\n")
    found = split("method=glob(lora*)", "--config-dir", "mine")
    assert [job.options["method"] for job in found] == ["lora", "lora_mine", "lora_plus"]
    assert [job.options["stage"] for job in split("stage=glob(*,exclude=_*)")] == groups.options("stage")
    (alone,) = split("method=glob(qlora)")
    assert alone.options["method"] == "qlora"


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("method=glob(x*)",), "unknown-option"),
        (("method.rank=glob(*)",), "unknown-option"),
        (("stage.learning_rate=interval(1e-5,1e-3)",), "compose"),
        (("seed=shuffle(1,2,3)",), "jobs-shuffled"),
        (("method=shuffle(lora,dora)", "method.rank=2,4"), "jobs-shuffled"),
        (("stage.max_steps=shuffle(range(1,4))",), "jobs-shuffled"),
        (("seed=1,2", "hydra/launcher=none_such"), "no-plugin"),
        (("seed=1,2", "hydra/sweeper=none_such"), "no-plugin"),
        (("seed=1,2", *OTHER, "+hydra.sweeper.direction=maximize"), "sweeper-direction"),
        (("seed=1,2", *OTHER, "+hydra.sweeper.direction=[minimize,minimize]"), "sweeper-direction"),
        (("seed=1,2", "hydra.sweeper.params={seed: 3}"), "bad-value"),
    ],
)
def test_what_no_sweep_can_be_made_of_is_refused(
    arguments: tuple[str, ...], rule: str, command: Callable[..., Any], here: Path
) -> None:
    for verb in ("plan", "train"):
        said = command(verb, "-m", *arguments)
        assert (said.code, said.rules, said.out) == (2, [rule], "")
    assert not list(here.iterdir())


def test_values_that_a_file_shuffles_are_refused(here: Path) -> None:
    (here / "mine" / "recipe").mkdir(parents=True)
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: 'shuffle(1,2)'}}}\n"
    (here / "mine" / "recipe" / "mixed.yaml").write_text(text)
    with pytest.raises(UserError, match=r"\[jobs-shuffled\] seed=shuffle\(1,2\)"):
        split("--config-dir", "mine", "recipe=mixed")


def test_jobs_stand_in_the_order_of_their_values(here: Path) -> None:
    assert [job.overrides for job in split("seed=sort(3,1,2)")] == [("seed=1",), ("seed=2",), ("seed=3",)]
    assert [job.overrides for job in split("seed=choice(3,1)")] == [("seed=3",), ("seed=1",)]


def test_of_jobs_that_are_chosen_two_are_shown(command: Callable[..., Any], here: Path) -> None:
    swept = ("method=lora,dora", "method.rank=range(2,9,2)", "stage.learning_rate=interval(1e-5,1e-3)")
    found = split(*swept, *OTHER)
    assert isinstance(found, sweeps.Choosing)
    assert [job.overrides for job in found.ends] == [
        ("method=lora", "method.rank=2", "stage.learning_rate=1e-05"),
        ("method=dora", "method.rank=8", "stage.learning_rate=0.001"),
    ]
    assert found.again == ("hydra.sweeper.sampler.seed=42",)
    assert split(*swept, "seed=7", *OTHER).again == ("hydra.sweeper.sampler.seed=7",)
    assert split(*swept, OTHER[0]).again is None
    assert len(split("seed=7", *OTHER).ends) == 1
    said = command("plan", "-m", *swept, *OTHER)
    assert said.code == 0 and "none is known yet" in said.out and "first" in said.out and "jobs:" not in said.out
    tree = json.loads(command("plan", "-m", *swept, *OTHER, "plan.format=json").out)
    assert (tree["known"], [job["job"] for job in tree["jobs"]]) == (False, ["first", "last"])
    assert json.loads(command("plan", "-m", "seed=1,2", "plan.format=json").out)["known"]
    assert not list(here.iterdir())


def test_a_refused_jobs_rules_are_whole_in_a_narrow_terminal(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = command("plan", "-m", "method.quantization.bits=8,null", "method=lora,full,freeze")
    assert "refused by [quantized-weights]: 1, 2" in said.out


@pytest.mark.parametrize(
    ("report", "lines", "figure"),
    [
        ({"status": "finished", "evaluate": {"perplexity": 9.5}}, [{"loss": 3.0}], 9.5),
        ({"status": "finished", "evaluate": {"loss": 0.5, "rewards/accuracy": 0.9}}, [], 0.5),
        ({"status": "finished", "evaluate": {"reward": 0.25, "kl": 3.0}}, [{"loss": 3.0}], -0.25),
        ({"status": "finished", "evaluate": {}}, [{"loss": 4.0}, {"loss": 3.0}], 3.0),
        ({"status": "finished", "evaluate": {}}, [{"loss": 3.0, "reward": 0.5}], -0.5),
        ({"status": "finished", "evaluate": {}}, [{"loss": None}], inf),
        ({"status": "failed", "evaluate": {"perplexity": 9.5}}, [], inf),
        (None, [], inf),
    ],
)
def test_what_a_sweeper_minimizes(
    report: dict[str, Any] | None, lines: list[dict[str, Any]], figure: float, here: Path
) -> None:
    if report is not None:
        Path("report.json").write_text(json.dumps(report))
    Path("metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert _value(RunFolder(".")) == figure


# --- the plugins themselves

OPTIONS = (
    "hardware=cpu",
    "precision=fp32",
    "evaluate.samples=0",
    "data.max_samples=30",
    "stage.max_steps=2",
    "tracking.uri=sqlite:///mlflow.db",
    "hydra.sweep.dir=swept",
)


def factory(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "factory", "-m", *arguments],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def nested(where: Path) -> int:
    """How many runs stand under the one of the sweep."""
    client, experiment = connect(side_by_side.tracking(f"sqlite:///{where}/mlflow.db"))
    parents = [run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([experiment])]
    assert parents.count(None) == 1 and len(set(parents)) <= 2
    return len(parents) - 1


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("joblib", ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
        ("submitit", ("hydra/launcher=submitit_local",)),
        ("ray", ("hydra/launcher=ray",)),
    ],
)
def test_a_launchers_jobs(plugin: str, options: tuple[str, ...], here: Path, tiny_model: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=f"needs the extra {plugin}")
    done = factory(here, *OPTIONS, *options, "method.rank=2,0", f"model.path={tiny_model}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "refused by [bad-value]: 1" in done.stdout and "Traceback" not in done.stderr
    ended = SweepFolder(here / "swept").ended()
    assert {name: outcome.code for name, outcome in ended.items()} == {"0": 0, "1": 2}
    assert nested(here) == 1


def test_optuna_chooses_the_jobs(here: Path, tiny_model: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    chosen = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "method.rank=choice(0,4)")
    done = factory(here, *OPTIONS, *chosen, f"model.path={tiny_model}")
    assert done.returncode == 1, done.stdout + done.stderr  # a job is refused, and stops no other
    sweep = SweepFolder(here / "swept")
    codes = [outcome.code for outcome in sweep.ended().values()]
    assert sorted(set(codes)) == [0, 2] and len(codes) == 3
    result = sweep.path / "optimization_results.yaml"
    found = yaml.safe_load(result.read_text())
    report = json.loads((sweep.path / str(codes.index(0)) / "report.json").read_text())
    assert found["best_params"] == {"++method.rank": 4}
    assert found["best_value"] == report["evaluate"]["perplexity"]
    assert nested(here) == codes.count(0)
    result.unlink()
    again = factory(here, "sweep.resume=swept")
    assert again.returncode == 1 and "training" not in again.stdout.split("none is known yet")[1]
    assert yaml.safe_load(result.read_text()) == found  # it chose the same, and was told the same
