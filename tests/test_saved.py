"""`factory evaluate`: of a run it measures what the run itself measured at its end, whatever it trained."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_methods import FITTING

from factory import cli, compose
from factory.execute import executor
from factory.execute.context import Run
from factory.plan import read_plan
from factory.refusal import UserError
from factory.run.folder import RunFolder
from factory.saved import merged, saved
from factory.untrained import untrained

Execute = Callable[..., Any]
SHORT = (
    "stage.max_steps=3",
    "stage.learning_rate=1e-2",
    "data.max_length=256",
    "data.max_samples=30",
    "precision=fp32",
    "stage.save_steps=null",
)
HERE = ("hardware=cpu", "tracking=none", "evaluate.samples=0")


def evaluated(*words: str, folder: str = "evaluated") -> Run:
    """The run of `factory evaluate WORDS`, walked in this process; its result is in `run.result`."""
    composed = untrained(compose.parse(list(words)))
    plan = cli._compiled(replace(composed, run_dir=folder), training=True, verb="evaluate")
    where = RunFolder(folder)
    where.path.mkdir(exist_ok=True)
    return Run(plan=plan, folder=where, resume_from=None, started=time.time())


def perplexity(*words: str, folder: str = "evaluated") -> float:
    return executor.walk(evaluated(*words, folder=folder))["evaluate"]["perplexity"]


@pytest.mark.parametrize(
    "method", ["full", "freeze", "lora", "dora", "qlora", "pissa", "adalora", "oft", "ia3", "galore"]
)
def test_a_run_is_measured_as_it_was_at_its_end(method: str, execute: Execute) -> None:
    done = execute(f"method={method}", *FITTING[method], *SHORT)
    wanted = done.result["evaluate"]
    assert wanted["perplexity"] < wanted["perplexity_before"] * (1 - 1e-5)
    # what starts from the weights is saved as its difference from them
    rounding = {"pissa": 1e-4}.get(method, 1e-6)
    assert perplexity("run=run") == pytest.approx(wanted["perplexity"], rel=rounding)


def test_the_base_is_measured_where_no_run_is_named(execute: Execute, tiny_model: Path) -> None:
    done = execute("method=lora", *SHORT)
    base = (f"model.path={tiny_model}", *SHORT[2:5], *HERE)
    assert perplexity(*base) == pytest.approx(done.result["evaluate"]["perplexity_before"], rel=1e-6)


def test_a_saved_model_alone_will_do(execute: Execute, tiny_model: Path) -> None:
    """An adapter names its base; whole weights are their own."""
    own = (*SHORT[2:5], *HERE)
    for method in ("lora", "full"):
        done = execute(f"method={method}", *SHORT, folder=method)
        shutil.copytree(Path(method) / "model", f"{method}-model")
        wanted = done.result["evaluate"]["perplexity"]
        assert perplexity(f"run={method}-model", *own) == pytest.approx(wanted, rel=1e-6)
        assert perplexity(f"run={method}/model") == pytest.approx(wanted, rel=1e-6)


def test_a_run_is_measured_on_other_rows_and_by_its_id(execute: Execute) -> None:
    from mlflow import MlflowClient

    execute("method=lora", *SHORT)
    client = MlflowClient("sqlite:///mlflow.db")
    run = client.create_run(client.create_experiment("x"), tags={"folder": str(Path("run").resolve())})
    words = (f"run={run.info.run_id}", "tracking.uri=sqlite:///mlflow.db")
    plan = evaluated(*words, "data.max_samples=20").plan
    assert plan.steps.align.max_samples == 20 and plan.steps.pack.max_length == 256
    assert plan.steps.load.adapter == str(Path("run").resolve() / "model")
    with pytest.raises(UserError, match=r"\[run-model\].*no such run"):
        evaluated(f"run={'0' * 32}", "tracking.uri=sqlite:///mlflow.db")


def test_a_runs_own_files_are_found_from_elsewhere(
    execute: Execute, tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its overrides are relative to where it was started."""
    (here / "rows.jsonl").write_text("".join(f'{{"instruction": "Say {n}.", "output": "{n}"}}\n' for n in range(30)))
    shutil.copytree(tiny_model, "base")
    done = execute("method=lora", *SHORT, "data=file", "data.path=rows.jsonl", "model.path=base")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert perplexity("run=../run") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)
    monkeypatch.chdir(here)
    (here / "dataset_info.json").write_text('{"mine": {"file_name": "rows.jsonl"}}')
    listed = ("data=llamafactory", "data.path=dataset_info.json", "data.names=[mine]", "data.sources.mine.weight=2")
    done = execute("method=lora", *SHORT, *listed, folder="listed")
    monkeypatch.chdir(here / "elsewhere")
    assert perplexity("run=../listed", folder="l") == pytest.approx(done.result["evaluate"]["perplexity"], rel=1e-6)
    with pytest.raises(UserError, match="data-missing"):  # that is said here, and means a file here
        evaluated("run=../run", "data.path=rows.jsonl")


def test_the_quantized_base_of_a_run_stays_quantized(execute: Execute) -> None:
    execute("method=qlora", *FITTING["qlora"], *SHORT)
    assert evaluated("run=run").plan.steps.quantize.bits == 4
    assert evaluated("run=run", "method.quantization.bits=8").plan.steps.quantize.bits == 8


MERGED = {
    "other keys stay": (("model=a", "seed=3"), ("evaluate.samples=2",), ("model=a", "seed=3", "evaluate.samples=2")),
    "the user's own wins": (("data.max_samples=5",), ("++data.max_samples=6",), ("++data.max_samples=6",)),
    "an option replaces the group": (("data=a", "data.max_samples=5", "model=m"), ("data=b",), ("model=m", "data=b")),
    "places are the run's own": (
        ("hydra.run.dir=x", "tracking=none", "tracking.uri=y", "stage.resume=auto"),
        (),
        (),
    ),
    "names that begin alike": (("method_of=1", "stage.resumed=2"), (), ("method_of=1", "stage.resumed=2")),
}


@pytest.mark.parametrize("case", MERGED)
def test_what_is_said_over_a_runs_own_words(case: str) -> None:
    before, own, wanted = MERGED[case]
    assert merged(before, own) == wanted


def test_what_is_no_model_is_refused(here: Path, command: Callable[..., Any], execute: Execute) -> None:
    execute("method=lora", *SHORT)
    shutil.rmtree("run/model")
    (here / "empty").mkdir()
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    for words, wrong in {
        "run=nowhere": "there is no such folder",
        "run=empty": "no run and no saved model in it",
        "run=adapter": "names no base",
        f"run={'a' * 32}": "no such run",
    }.items():
        said = command("evaluate", words)
        assert (said.code, said.rules) == (2, ["run-model"]), said.err
        assert wrong in said.err
    said = command("evaluate", "run=run")
    assert said.rules == ["run-unfinished"] and "end it by: factory resume run\n" in said.err
    assert command("evaluate", "method=lora").rules == ["evaluate-method"]
    assert command("evaluate", "stage=dpo").rules == ["evaluate-reference"]
    assert command("train", "method=none").rules == ["method-none"]
    assert command("evaluate", "-m", "seed=1,2").rules == ["plan-of-a-sweep"]


def test_the_verb_is_part_of_the_plan(execute: Execute) -> None:
    execute("method=lora", *SHORT)
    run = evaluated("run=run")
    assert run.plan.verb == "evaluate" and run.plan.digest() != read_plan(Path("run/plan.yaml")).digest()
    assert run.plan.estimate.memory.gradients == run.plan.estimate.memory.optimizer == 0
    assert saved("run", None).adapter == "run/model"
